"""Which modules stay in fp32 so that a picture's codes are drawn as in fp32 often enough.

    python tools/half_islands.py tiny [--run RUN] [--wanted 0.99] [--seeds 20] [--precision fp16]
                                 [--work FOLDER]

One module after the other joins the list, the one that helps most. What is compared is the share of
codes that both draw alike from the same state over all noise: how far the intervals of their
distributions overlap, along the way of fp32. A line of JSON; exit 1 when the share is not reached.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx

from mmprod.config.schema import Dims, SamplerConfig
from mmprod.export.precision import HEAVY
from mmprod.graphs.runner import Array
from mmprod.log import configure_logging
from mmprod.models.order import halton_ranks, image_bounds
from mmprod.runners.host_steps import cumulative, denoised, draw
from mmprod.runners.ort import PartRunner
from tools.half import KINDS, Pair, opened, pair

State = tuple[Array, Array, int, Array]
"""codes (B, N), tokens (B, L), the step, the places that it fills in (N,)"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="preset or file: sizes and samplers")
    parser.add_argument("--run", type=Path, help="trained weights; fresh ones if absent")
    parser.add_argument("--wanted", type=float, default=0.99)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--precision", choices=KINDS, default="fp16")
    parser.add_argument("--work", type=Path, help="folder that keeps the graphs")
    given = parser.parse_args()
    configure_logging(-1)
    config, models, dims = opened(given)
    with tempfile.TemporaryDirectory(prefix="mmprod-islands-") as folder:
        work = given.work or Path(folder)

        def with_islands(islands: list[str]) -> Pair:
            asked = argparse.Namespace(**vars(given), island=islands)
            return pair("fusion_step", config, models, dims, asked, work)

        exact = with_islands([]).exact
        states = way(exact, dims, config.sampler, given.seeds)
        sums = [chances(exact, state, dims, config.sampler) for state in states]

        def share(islands: list[str]) -> float:
            half = with_islands(islands).half
            return alike(sums, [chances(half, state, dims, config.sampler) for state in states])

        known = blocks(onnx.load(work / "fusion_step.fp32.onnx", load_external_data=False))
        trail = search(share, known, given.wanted)
    islands = [name for name, _ in trail[1:]]
    print(json.dumps({"islands": islands, "shares": [round(found, 5) for _, found in trail]}))
    return 0 if trail[-1][1] >= given.wanted else 1


def search(
    share: Callable[[list[str]], float], known: Iterable[str], wanted: float
) -> list[tuple[str, float]]:
    """Modules in the order they joined, and the share with each; first that without any, of "".
    Ends where it is reached, or nothing helps.
    """
    left = list(known)
    trail = [("", share([]))]
    while left and trail[-1][1] < wanted:
        chosen = [name for name, _ in trail[1:]]
        tried = [(name, share([*chosen, name])) for name in left]
        best = max(tried, key=lambda pair: pair[1])
        if best[1] <= trail[-1][1]:
            break
        trail.append(best)
        left.remove(best[0])
    return trail


def blocks(model: onnx.ModelProto) -> list[str]:
    """Paths of modules with products in them: blocks of a list whole, others as they are."""
    found = {}
    for node in model.graph.node:
        scope = node.name.rpartition("/")[0]
        if node.op_type in HEAVY and scope:
            parts = scope.split(".")
            end = next((at for at, part in enumerate(parts) if part.isdigit()), len(parts))
            found[".".join(parts[: end + 1])] = None
    return list(found)


def way(exact: PartRunner, dims: Dims, sampler: SamplerConfig, seeds: int) -> list[State]:
    """Every state of `seeds` pictures on their way in fp32, of random captions."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, dims.vocabulary, (seeds, dims.text_length)).astype(np.int32)
    codes = np.full((seeds, dims.positions), dims.codebook_size, np.int32)
    ranks = np.array(halton_ranks(dims.grid, dims.planes))
    bounds = image_bounds(dims.positions, sampler.image_steps)
    states: list[State] = []
    for at in range(sampler.image_steps):
        chosen = (ranks >= bounds[at]) & (ranks < bounds[at + 1])
        states.append((codes, tokens, at, chosen))
        logits, _ = denoised(exact, codes, tokens, at, sampler, dims.vocabulary)
        noise = rng.random(codes.shape, dtype=np.float32)
        drawn = draw(logits, noise, sampler.image_temperature, sampler.min_probability)
        codes = np.where(chosen, drawn, codes)
    return states


def chances(graph: PartRunner, state: State, dims: Dims, sampler: SamplerConfig) -> Array:
    """Distribution functions of the places that a step fills in: (B, n, K) float64."""
    codes, tokens, at, chosen = state
    logits, _ = denoised(graph, codes, tokens, at, sampler, dims.vocabulary)
    sums = cumulative(logits[:, chosen], sampler.image_temperature, sampler.min_probability)
    found: Array = sums.astype(np.float64) / sums[..., -1:]
    return found


def alike(ours: Iterable[Array], theirs: Iterable[Array]) -> float:
    """The mean share of noise with which both draw the same id."""
    shares = []
    for a, b in zip(ours, theirs, strict=True):
        low = np.maximum(*(np.pad(x[..., :-1], ((0, 0), (0, 0), (1, 0))) for x in (a, b)))
        shares.append(np.clip(np.minimum(a, b) - low, 0, None).sum(-1).ravel())
    return float(np.concatenate(shares).mean())


if __name__ == "__main__":
    sys.exit(main())
