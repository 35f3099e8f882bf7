"""A combination that cannot work: its name, what it is asked about, and how it is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mmprod.deploying.facts import Facts
from mmprod.deploying.gpus import NONE
from mmprod.deploying.options import Options, Serving, Training

Found = tuple[str, str] | None
"""What does not fit, and what to do; None where all is well."""

TRITON = frozenset({"triton"})
SERVER = frozenset({"docker", "compose", "kubernetes", "systemd", "monitoring"})
"""Where `mmprod serve` runs."""
CONTAINERS = frozenset({"docker", "compose", "kubernetes"})
SERVING = TRITON | SERVER
TRAINING = frozenset({"kubernetes", "slurm"})
CLUSTER = frozenset({"kubernetes"})
EVERY = SERVING | TRAINING


@dataclass(frozen=True)
class Asked:
    """What a user wants. kinds: of `deploy render`."""

    facts: Facts
    options: Options
    kinds: frozenset[str]

    @property
    def serving(self) -> Serving:
        return self.options.serving

    @property
    def training(self) -> Training:
        return self.options.training

    @property
    def on_engines(self) -> bool:
        """Whether an engine answers somewhere: in `mmprod serve` on a GPU, or Triton's tensorrt."""
        server = bool(self.kinds & SERVER) and self.serving.gpu != NONE
        return server or (bool(self.kinds & TRITON) and self.serving.backend == "tensorrt")

    @property
    def on_graphs(self) -> bool:
        """Whether ONNX Runtime answers somewhere."""
        server = bool(self.kinds & SERVER) and self.serving.gpu == NONE
        return server or (bool(self.kinds & TRITON) and self.serving.backend != "tensorrt")


@dataclass(frozen=True)
class Rule:
    """kinds: which of `deploy render` it is about."""

    name: str
    kinds: frozenset[str]
    find: Callable[[Asked], Found]
