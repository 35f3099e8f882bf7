"""What the friendly models work with: the sizes and parts of one opened bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mmprod.bundle import Bundle
from mmprod.config.schema import Dims, SamplerConfig
from mmprod.graphs.codec_facts import CodecFacts
from mmprod.graphs.runner import Arrays
from mmprod.sampling import Tokens
from mmprod.serving.graph_model import Call, CallRunner, ServedGraph
from mmprod.serving.model import Parameters
from mmprod.serving.settings import Limits


@dataclass(frozen=True)
class Hit:
    """A picture of the index: its key, how well it fits, and a PNG or JPEG file of it, b"" for
    none.
    """

    key: str
    score: float
    picture: bytes = b""


class Searcher(Protocol):
    """An index of pictures. `mmprod serve --index` opens one; tests have a fake."""

    def check(self, bundle: Bundle, precisions: Mapping[str, str]) -> None:
        """Raise MmprodError where the bundle, of whose graphs these are served in these precisions,
        is not the model of the index.
        """

    def search(self, embedding: npt.NDArray[np.float32], count: int) -> Sequence[Hit]:
        """embedding (E,) of length 1 -> at most `count` hits, best first."""


@dataclass(frozen=True)
class Made:
    """Outputs of a friendly model by name, and what else to tell."""

    outputs: Arrays
    extra: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class Kit:
    """One bundle, opened. tokenizer and facts are there when a model needs them."""

    dims: Dims
    sampler: SamplerConfig
    graphs: Mapping[str, ServedGraph]
    tokenizer: Tokens
    facts: CodecFacts
    limits: Limits
    searcher: Searcher | None = None

    def runner(self, name: str, call: Call) -> CallRunner:
        return CallRunner(self.graphs[name], call)
