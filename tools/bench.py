"""Timings side by side, as ratios: run it on an idle machine, `make bench`.

Each row times two ways of the same work in turn (A B A B ...) in one process and prints the medians
and their ratio. Machines differ; quote the ratio together with the line about the machine.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mmprod.models.attention import attend
from mmprod.models.quantizers.spherical import SphericalQuantizer

ROUNDS = 9
Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """Two ways of one piece of work."""

    what: str
    ours: Work
    other: str
    theirs: Work


def quantizer() -> Row:
    """Quantizer forward and backward, 4,096 vectors, K 16384, D 8; the other: cdist and argmin."""
    ours = SphericalQuantizer(16384, 8, decay=0.99, commitment=0.25, restart=True).train()
    z = torch.randn(64, 8, 8, 8)

    def step() -> None:
        latent = z.clone().requires_grad_()
        out = ours(latent)
        (out.latents.sum() + out.encoder_loss).backward()
        ours.update()

    def plain() -> None:
        latent = z.clone().requires_grad_()
        flat = F.normalize(latent, dim=1).permute(0, 2, 3, 1).reshape(-1, 8)
        chosen = ours.codes[torch.cdist(flat, ours.codes).argmin(1)]
        straight = flat + (chosen - flat).detach()
        (straight.sum() + 0.25 * (flat - chosen).square().sum(1).mean()).backward()

    return Row("quantizer, update included", step, "cdist + argmin, no update", plain)


def attention() -> Row:
    """Attention forward and backward, bf16, batch 64, 4 x 48, 98 tokens; the other: fused."""
    tensors = [torch.randn(64, 4, 98, 48, dtype=torch.bfloat16) for _ in range(3)]

    def run(function: Callable[..., torch.Tensor]) -> Work:
        def step() -> None:
            q, k, v = (t.clone().requires_grad_() for t in tensors)
            function(q, k, v).sum().backward()

        return step

    fused = F.scaled_dot_product_attention
    return Row("attention, written out", run(attend), "fused CPU kernel", run(fused))


def measured(row: Row) -> tuple[float, float]:
    """Median seconds of both, taken in turn after one warm-up each."""
    row.ours(), row.theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for work, kept in zip((row.ours, row.theirs), times, strict=True):
            start = time.perf_counter()
            work()
            kept.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def lines() -> Iterator[str]:
    """The report, line by line."""
    threads = torch.get_num_threads()
    yield f"torch {torch.__version__}, {threads} threads, {platform.machine()}, {ROUNDS} rounds"
    for row in (quantizer(), attention()):
        ours, theirs = measured(row)
        yield (
            f"{row.what}: {1e3 * ours:.1f} ms | {row.other}: {1e3 * theirs:.1f} ms"
            f" | {theirs / ours:.2f} times as fast"
        )


def main() -> int:
    """Print every row."""
    for line in lines():
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
