"""What a sampler should show for the codes it drew.

Any precision below fp32 moves draws, and on a grid of many positions hardly a sample has all ids of
PyTorch, so the decoder in the sampler's graph cannot be judged by its pictures. It is held against
the reference's decoder on the same codes instead: PyTorch's, or without it the bundle's own fp32
graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from mmprod.bundle import Bundle
from mmprod.errors import MmprodError
from mmprod.graphs.runner import Array, Runner
from mmprod.graphs.spec import GraphSpec
from mmprod.parity.candidates import Candidate, open_own

logger = logging.getLogger(__name__)

DECODER = "codec_decode"


@contextmanager
def decoding(
    bundle: Bundle,
    spec: GraphSpec,
    candidates: Sequence[Candidate],
    reference: Callable[[GraphSpec], Runner] | None,
    apart: Callable[[Candidate], Candidate],
) -> Iterator[Sequence[Candidate]]:
    """The candidates; those of a sampler of pictures below fp32 with a decoder, as long as there is
    one. `apart`: puts a candidate where it is to run.
    """
    shows = spec.loop_steps and any(tensor.role == "pixels" for tensor in spec.outputs)
    if not shows or all(item.subject.precision == "fp32" for item in candidates):
        yield candidates
        return
    decoder = reference(bundle.specs[DECODER]) if reference else _stored(bundle, apart)
    if decoder is None:
        yield candidates
        return

    def decode(codes: Array) -> Mapping[str, Array]:
        return decoder({"codes": codes})

    try:
        yield [
            replace(item, decode=decode) if item.subject.precision != "fp32" else item
            for item in candidates
        ]
    finally:
        decoder.close()


def _stored(bundle: Bundle, apart: Callable[[Candidate], Candidate]) -> Runner | None:
    """The bundle's own decoder; None, and a warning, when there is none that runs."""
    try:
        return open_own(bundle, bundle.specs[DECODER], apart)
    except MmprodError as error:
        logger.warning("pictures of moved draws are not judged: %s", error.message)
    return None
