"""The fusion transformer's image branch as the entropy model: codes given the codes before them.

After M2T (Mentzer et al. 2023): a masked model and an order that both sides know give, group by
group, a distribution for each place; the range coder does the rest. The text is wholly masked
(graph `code_prior`). Blocks and groups: see blocks.py.

    canvas, all masked --code_prior--> logits --integer tables--> group 1 <-> range coder
           ^------------------------------------- its codes ---------'   ... group T

Writer and reader run the same function, `_walk`, with the same calls in the same batch shape; they
differ only in where the symbols of a group come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

from mmprod.bitstream.blocks import GROUPS, Block, blocks_of, count_blocks
from mmprod.bitstream.coder import RangeReader, RangeWriter
from mmprod.bitstream.picture import CodecId, Codes
from mmprod.bitstream.priors import Payload, PriorName, Shapes, check_count, count_codes
from mmprod.bitstream.runtime import fingerprint
from mmprod.bitstream.tables import Frequencies, frequencies, logit_weights
from mmprod.errors import ConfigError
from mmprod.graphs.runner import Array, Runner

Exchange = Callable[[Frequencies, Array], Codes]
"""(tables (n, S), where the symbols belong (n,)) -> symbols (n,)"""

BATCH = 4
"""blocks in a call of the prior when a file has more than one; one alone is a call of its own"""


class FusionPrior:
    """Over a runner of the graph `code_prior`. Raises ConfigError when it belongs to another codec.

    What it writes can be read where this very graph gives the same bits; see runtime.py.
    """

    name: PriorName = "fusion"

    def __init__(self, codec: CodecId, runner: Runner) -> None:
        self._codec, self._runner = codec, runner
        spec = runner.spec
        positions, ids = spec.output("logits").sizes({"batch": 1})[1:]
        self._grid = round((positions / codec.planes) ** 0.5)
        fits = ids == codec.codebook_size and codec.planes * self._grid**2 == positions
        if spec.name != "code_prior" or not fits:
            raise ConfigError(
                f"{spec.name} gives {ids} logits at {positions} places: no prior of a codec of "
                f"{codec.codebook_size} ids in {codec.planes} planes",
                hint="take the prior and the codec from the same run or bundle",
            )
        self._fingerprints: dict[int, bytes] = {}

    def fingerprint(self, shapes: Shapes) -> bytes:
        batch = self._batch(shapes)
        if batch not in self._fingerprints:
            self._fingerprints[batch] = fingerprint(self._runner, batch)
        return self._fingerprints[batch]

    def runtime(self) -> str:
        return self._runner.backend

    def encode(self, symbols: Codes, shapes: Shapes) -> Payload:
        writer = RangeWriter()

        def exchange(tables: Frequencies, target: Array) -> Codes:
            writer.put(symbols[target], tables)
            return symbols[target]

        self._walk(shapes, exchange)
        return Payload(writer.finish(), writer.bits)

    def decode(self, payload: bytes, shapes: Shapes) -> Codes:
        check_count(payload, shapes)
        reader = RangeReader(payload)
        symbols = np.zeros(count_codes(shapes), np.int32)

        def exchange(tables: Frequencies, target: Array) -> Codes:
            symbols[target] = reader.take(tables, len(target))
            return symbols[target]

        self._walk(shapes, exchange)
        reader.finish()
        return symbols

    def _walk(self, shapes: Shapes, exchange: Exchange) -> None:
        """All blocks, some at a time; of these group after group, and in a group block after
        block.
        """
        batch = self._batch(shapes)
        for blocks in _some_at_a_time(blocks_of(shapes, self._grid), batch):
            size = self._codec.planes * self._grid**2
            canvas = np.full((batch, size), self._codec.codebook_size, np.int32)
            for group in range(GROUPS):
                parts = [block.group(group) for block in blocks]
                if any(part.stop for part in parts):
                    self._group(canvas, blocks, parts, exchange)

    def _group(
        self, canvas: Codes, blocks: Sequence[Block], parts: Sequence[slice], exchange: Exchange
    ) -> None:
        """Exchange the symbols of a group and put them on the canvas."""
        logits = self._runner({"codes": canvas})["logits"]
        where = np.repeat(np.arange(len(blocks)), [part.stop - part.start for part in parts])
        pairs = list(zip(blocks, parts, strict=True))
        place = np.concatenate([block.canvas[part] for block, part in pairs])
        target = np.concatenate([block.target[part] for block, part in pairs])
        planes, book = self._codec.planes, self._codec.book
        plane = place // self._grid**2
        rows = logits.reshape(*canvas.shape, planes, book)[where, place, plane]
        symbols = exchange(frequencies(logit_weights(rows)), target)
        canvas[where, place] = symbols + plane * book

    def _batch(self, shapes: Shapes) -> int:
        return 1 if count_blocks(shapes, self._grid) == 1 else BATCH


def _some_at_a_time(blocks: Iterator[Block], count: int) -> Iterator[list[Block]]:
    while some := list(islice(blocks, count)):
        yield some
