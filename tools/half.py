"""How near half precision stays: logits, pictures and draws of a model in fp16 beside fp32.

    python tools/half.py small [--run RUN] [--seeds 100] [--batch 10] [--precision fp16]
                               [--island MODULE ...] [--out lines.jsonl] [--work FOLDER]

Both graphs run in ONNX Runtime; in the half one each result is rounded, as a device does and a CPU
of its own accord does not. The samplers are followed step by step in NumPy: `same state` draws with
both from the state that fp32 reached, `free` lets half go its own way, where one moved draw moves
all that follow. Without --run the weights are fresh, ids' embeddings four times as large, since
logits of a fresh model are all alike. A line of JSON, also to --out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from mmprod.checkpoint import open_run
from mmprod.checkpoint.models import Models, load_models
from mmprod.config.load import load_config
from mmprod.config.schema import Config, Dims, SamplerConfig
from mmprod.export.graph import assemble, parts_of
from mmprod.export.graph_file import save_graph
from mmprod.export.islands import cast_with_islands
from mmprod.export.onnx_export import export_part
from mmprod.graphs.catalog import build_catalog
from mmprod.graphs.modules import build_module
from mmprod.graphs.runner import Array
from mmprod.graphs.spec import GraphSpec
from mmprod.log import configure_logging
from mmprod.models.codec import build_codec
from mmprod.models.fusion import build_fusion
from mmprod.models.order import halton_ranks, image_bounds
from mmprod.runners.bf16 import BF16, emulate
from mmprod.runners.host_steps import draw, guided, next_words
from mmprod.runners.ort import PartRunner

LIVELY = 4.0
KINDS = {"fp16": onnx.TensorProto.FLOAT16, "bf16": BF16}


@dataclass(frozen=True)
class Pair:
    """A graph in fp32 and in half."""

    exact: PartRunner
    half: PartRunner


@dataclass
class Shares:
    """Alike of all, by what was drawn."""

    alike: float = 0.0
    total: float = 0.0

    def add(self, same: Array, chosen: Array) -> None:
        self.alike += float((same & chosen).sum())
        self.total += float(chosen.sum())

    @property
    def share(self) -> float:
        return self.alike / self.total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="preset or file: sizes and samplers")
    parser.add_argument("--run", type=Path, help="trained weights; fresh ones if absent")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--batch", type=int, default=10, help="seeds that run together")
    parser.add_argument("--precision", choices=KINDS, default="fp16")
    parser.add_argument("--island", nargs="*", default=[], help="modules of fusion kept in fp32")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path, help="folder that keeps the graphs")
    given = parser.parse_args()
    configure_logging(-1)
    start = time.perf_counter()
    config, models, dims = opened(given)
    with tempfile.TemporaryDirectory(prefix="mmprod-half-") as folder:
        work = given.work or Path(folder)
        step = pair("fusion_step", config, models, dims, given, work)
        decode = pair("codec_decode", config, models, dims, given, work)
        found = measure(step, decode, dims, config.sampler, given)
    about = {
        "model": given.config,
        "weights": f"run {given.run}" if given.run else f"fresh, embeddings x {LIVELY:g}",
        "precision": given.precision,
        "islands": given.island,
        "seeds": given.seeds,
    }
    line = json.dumps(about | found | {"seconds": round(time.perf_counter() - start)})
    print(line)
    if given.out:
        with given.out.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
    return 0


def opened(given: argparse.Namespace) -> tuple[Config, Models, Dims]:
    if given.run:
        run = open_run(given.run)
        return run.config, load_models(run), run.dims
    config = load_config(given.config)
    dims = config.dims(config.data.vocabulary)
    torch.manual_seed(0)
    models = Models(build_codec(config.codec).eval(), build_fusion(config.fusion, dims).eval())
    for name, parameter in models.fusion.named_parameters():
        if name.endswith("embed.weight"):
            parameter.data.mul_(LIVELY)
    return config, models, dims


def pair(
    name: str, config: Config, models: Models, dims: Dims, given: argparse.Namespace, work: Path
) -> Pair:
    """The graph exported and cast; files that are there already are taken again."""
    spec: GraphSpec = build_catalog(dims, config.sampler)[name]
    exact = work / f"{name}.fp32.onnx"
    if not exact.exists():
        module = build_module(
            name, codec=models.codec, fusion=models.fusion, dims=dims, sampler=config.sampler
        )
        traced = {part.name: export_part(part) for part in parts_of(spec, module)}
        save_graph(assemble(spec, module, traced, "fp32"), exact)
    half = work / f"{name}.half.onnx"
    islands: Sequence[str] = given.island if name == "fusion_step" else ()
    cast_with_islands(exact, spec, given.precision, islands, half)
    model = onnx.load(half)
    emulate(model, KINDS[given.precision])
    save_graph(model, half)
    return Pair(PartRunner(exact), PartRunner(half))


def measure(
    step: Pair, decode: Pair, dims: Dims, sampler: SamplerConfig, given: argparse.Namespace
) -> dict[str, Any]:
    """All figures over the seeds."""
    cosines: list[float] = []
    worst: list[float] = []
    squares: list[float] = []
    shares = {name: Shares() for name in ("codes", "tokens", "free codes", "free tokens")}
    for first in range(0, given.seeds, given.batch):
        rng = np.random.default_rng(first)
        count = min(given.batch, given.seeds - first)
        codes = rng.integers(0, dims.codebook_size, (count, dims.positions)).astype(np.int32)
        tokens = rng.integers(0, dims.vocabulary, (count, dims.text_length)).astype(np.int32)
        gap = pixels(decode.exact, codes) - pixels(decode.half, codes)
        squares += np.square(gap).mean((1, 2, 3)).tolist()
        for sides in (
            images(step, tokens, rng, dims, sampler, shares),
            texts(step, codes, rng, dims, sampler, shares),
        ):
            for exact, half in sides:
                cosines += cosine(exact.reshape(count, -1), half.reshape(count, -1)).tolist()
                worst.append(float(cosine(exact, half).min()))
    psnr = [10 * np.log10(255**2 / max(square, 1e-9)) for square in squares]
    return {
        "cosine_of_a_sample": min(cosines),
        "cosine_of_a_place": min(worst),
        "psnr_smallest": min(psnr),
        "psnr_mean": float(np.mean(psnr)),
        "draws": {name: round(found.share, 5) for name, found in shares.items()},
        "draws_counted": int(shares["codes"].total + shares["tokens"].total),
    }


Sides = list[tuple[Array, Array]]


def images(
    step: Pair,
    tokens: Array,
    rng: np.random.Generator,
    dims: Dims,
    sampler: SamplerConfig,
    shares: dict[str, Shares],
) -> Sides:
    """text -> picture; the logits of each step on the way of fp32."""
    blank = np.full_like(tokens, dims.vocabulary)
    ranks = np.array(halton_ranks(dims.grid, dims.planes))
    bounds = image_bounds(dims.positions, sampler.image_steps)
    exact = free = np.full((len(tokens), dims.positions), dims.codebook_size, np.int32)
    chances = sampler.image_temperature, sampler.min_probability
    sides: Sides = []

    def logits(graph: PartRunner, codes: Array, at: int) -> tuple[Array, Array]:
        both = {"codes": np.concatenate([codes] * 2), "tokens": np.concatenate([tokens, blank])}
        found = graph(both)["image_logits"]
        return found, guided(*np.split(found, 2), at, sampler)

    for at in range(sampler.image_steps):
        noise = rng.random(exact.shape, dtype=np.float32)
        raw, wanted = logits(step.exact, exact, at)
        raw_half, near = logits(step.half, exact, at)
        own = near if (free == exact).all() else logits(step.half, free, at)[1]
        sides.append((raw[: len(tokens)], raw_half[: len(tokens)]))
        chosen = np.broadcast_to((ranks >= bounds[at]) & (ranks < bounds[at + 1]), exact.shape)
        drawn, other, loose = (draw(x, noise, *chances) for x in (wanted, near, own))
        shares["codes"].add(drawn == other, chosen)
        exact, free = np.where(chosen, drawn, exact), np.where(chosen, loose, free)
    shares["free codes"].add(exact == free, np.ones_like(exact, np.bool_))
    return sides


def texts(
    step: Pair,
    codes: Array,
    rng: np.random.Generator,
    dims: Dims,
    sampler: SamplerConfig,
    shares: dict[str, Shares],
) -> Sides:
    """picture -> text, likewise; which places are filled in is drawn too, so to say."""
    exact = free = np.full((len(codes), dims.text_length), dims.vocabulary, np.int32)
    chances = sampler.text_temperature, sampler.min_probability
    sides: Sides = []
    for at in range(sampler.text_steps):
        noise = rng.random(exact.shape, dtype=np.float32)

        def filled(graph: PartRunner, tokens: Array) -> tuple[Array, Array]:
            found = graph({"codes": codes, "tokens": tokens})["text_logits"]
            masked = tokens == dims.vocabulary
            chosen = next_words(found, masked, at, sampler.text_steps)  # noqa: B023
            return found, np.where(chosen, draw(found, noise, *chances), tokens)  # noqa: B023

        raw, after = filled(step.exact, exact)
        raw_half, near = filled(step.half, exact)
        free = near if (free == exact).all() else filled(step.half, free)[1]
        sides.append((raw, raw_half))
        shares["tokens"].add(near == after, after != exact)
        exact = after
    shares["free tokens"].add(exact == free, np.ones_like(exact, np.bool_))
    return sides


def cosine(a: Array, b: Array) -> Array:
    """Of the last axis, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    found: Array = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return found


def pixels(graph: PartRunner, codes: Array) -> Array:
    return graph({"codes": codes})["pixels"].astype(np.float64)


if __name__ == "__main__":
    sys.exit(main())
