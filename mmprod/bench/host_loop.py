"""`text_to_image` as a loop on the host: the graph `fusion_step` once per step, the draw in NumPy.

    tokens, noise -> [fusion_step(codes and codes, tokens and masks) -> draw] x T -> codec_decode

It is what a deployment without the whole sampler in one graph would do, and computes what that
graph computes (models/unmask.py says why): the same noise gives the same codes, which the bench
checks before it measures. The text is encoded anew in every step, since `fusion_step` is one graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmprod.config.schema import Dims, SamplerConfig
from mmprod.graphs.runner import Array, Arrays, Runner
from mmprod.graphs.spec import GraphSpec
from mmprod.models.order import halton_ranks, image_bounds
from mmprod.runners.checks import check_inputs, check_outputs
from mmprod.runners.host_steps import denoised, draw


@dataclass(frozen=True)
class Order:
    """When each place is filled in: ranks (N), and the places known after step 0..T."""

    ranks: tuple[int, ...]
    bounds: tuple[int, ...]


def sampling_order(dims: Dims, sampler: SamplerConfig) -> Order:
    """The model's own order."""
    return Order(
        tuple(halton_ranks(dims.grid, dims.planes)),
        tuple(image_bounds(dims.positions, sampler.image_steps)),
    )


class HostLoop:
    """A Runner of `text_to_image` made of two other runners, which it closes."""

    spec: GraphSpec
    backend: str

    def __init__(
        self, spec: GraphSpec, parts: tuple[Runner, Runner], sampler: SamplerConfig, order: Order
    ) -> None:
        """parts: `fusion_step` and `codec_decode`."""
        self.spec = spec
        self._step, self._decode = parts
        self.backend = f"host loop over {self._step.backend}"
        self._blank = self._step.spec.input("tokens").below - 1
        self._mask = self._step.spec.input("codes").below - 1
        self._ranks = np.array(order.ranks, np.int32)
        self._bounds = order.bounds
        self._sampler = sampler

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs by name; see `graphs.runner.Runner`."""
        sizes = check_inputs(self.spec, inputs)
        tokens, noise = inputs["tokens"], inputs["noise"]
        codes = np.full((len(tokens), len(self._ranks)), self._mask, np.int32)
        chances = self._sampler.image_temperature, self._sampler.min_probability
        for step in range(self._sampler.image_steps):
            logits, _ = denoised(self._step, codes, tokens, step, self._sampler, self._blank)
            drawn = draw(logits, noise[:, step], *chances)
            low, high = self._bounds[step : step + 2]
            codes = np.where((self._ranks >= low) & (self._ranks < high), drawn, codes)
        pixels = self._decode({"codes": codes})["pixels"]
        return check_outputs(self.spec, [pixels, codes], sizes)

    def close(self) -> None:
        self._step.close()
        self._decode.close()
