"""How far a codec's features move without anybody being wrong: the floors under the parity limits.

    python tools/parity_floors.py configs/tiny.toml [--run RUN] [--samples 64]

Prints, per way of computing, the relative change of the encoder's features against float64 (median,
99.9th percentile, largest over latent positions), and the share of codes that differ, with the
largest change that any of them needed (parity/ties.py). Without a run the weights are fresh.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import torch

from mmprod.checkpoint.models import load_codec
from mmprod.checkpoint.run import open_run
from mmprod.config.load import load_config
from mmprod.graphs.runner import Rivals
from mmprod.models.codec import Codec, build_codec, to_signal
from mmprod.parity.limits import TIES
from mmprod.parity.ties import needed_changes

SEED = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--run", type=Path, help="trained weights of this run")
    parser.add_argument("--samples", type=int, default=64)
    given = parser.parse_args()
    config = load_config(given.config)
    torch.manual_seed(SEED)
    codec = load_codec(open_run(given.run)) if given.run else build_codec(config.codec)
    measure(codec.eval(), pictures(given.samples, config.data.image_size))


def pictures(count: int, size: int) -> torch.Tensor:
    """(count, size, size, 3) uint8: half noise, half smooth gradients with a little noise."""
    rng = np.random.Generator(np.random.Philox(key=[SEED, count]))
    noise = rng.integers(0, 256, (count - count // 2, size, size, 3))
    slope = rng.uniform(-2, 2, (count // 2, 1, 1, 3)) * np.arange(size)[:, None, None]
    level = rng.uniform(0, 255, (count // 2, 1, 1, 3)) + rng.normal(
        0, 4, (count // 2, size, size, 3)
    )
    smooth = np.clip(level + slope, 0, 255)
    return torch.from_numpy(np.concatenate([noise, smooth]).astype(np.uint8))


@torch.inference_mode()
def measure(codec: Codec, pixels: torch.Tensor) -> None:
    x = to_signal(pixels)
    exact = copy.deepcopy(codec.encoder).double()(x.double())
    turned = torch.arange(len(x) - 1, -1, -1)
    ways = {
        "fp32": codec.encoder(x),
        "fp32, batch reversed": codec.encoder(x[turned])[turned],
        "fp32, one by one": torch.cat([codec.encoder(one[None]) for one in x]),
        "bf16": copy.deepcopy(codec.encoder).bfloat16()(x.bfloat16()),
        "fp16": copy.deepcopy(codec.encoder).half()(x.half()),
    }
    codes = codec.quantizer.encode(exact.float())
    near = codec.quantizer.rivals(exact.float(), 9)
    ties = ", ".join(f"{name} {value:g}" for name, (value, _) in TIES.items())
    print(f"{len(pixels)} pictures, {codes.numel()} codes; a tie is at most: {ties}")
    print(
        f"{'way':22} {'median':>9} {'99.9 %':>9} {'largest':>9} {'codes moved':>12} {'needed':>9}"
    )
    for way, features in ways.items():
        moved = (features.double() - exact).norm(dim=1) / exact.norm(dim=1)
        got = codec.quantizer.encode(features.float())
        needed = "unknown"
        if near is not None:
            rivals = Rivals(near[0].numpy(), near[1].numpy())
            needed = f"{needed_changes(codes.numpy(), got.numpy(), rivals).max():9.2g}"
        middle, high = (float(torch.quantile(moved.flatten()[:1_000_000], q)) for q in (0.5, 0.999))
        share = float((got != codes).double().mean())
        floors = f"{middle:9.2g} {high:9.2g} {float(moved.max()):9.2g}"
        print(f"{way:22} {floors} {share:12.3%} {needed:>9}")


if __name__ == "__main__":
    main()
