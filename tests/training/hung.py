"""Programs on two ranks that do not end with 0."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.training.ranks import ROOT, variables


def spawn(arguments: list[str], folder: Path, world: int = 2) -> list[subprocess.Popen[str]]:
    """Start `python *arguments` on `world` ranks; rank r writes FOLDER/rank-r.log."""
    shared = variables(world)
    ranks = []
    for rank in range(world):
        with (folder / f"rank-{rank}.log").open("w") as log:
            ranks.append(
                subprocess.Popen(
                    [sys.executable, *arguments],
                    env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    text=True,
                    cwd=ROOT,
                )
            )
    return ranks


def ended(ranks: list[subprocess.Popen[str]], folder: Path) -> tuple[list[int], str]:
    """Exit codes and all output."""
    try:
        codes = [rank.wait(120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return codes, "\n".join((folder / f"rank-{r}.log").read_text() for r in range(len(ranks)))


def start_ranks(arguments: list[str], folder: Path) -> tuple[list[int], str, float]:
    """Exit codes, output, seconds until all had ended."""
    started = time.monotonic()
    codes, output = ended(spawn(arguments, folder), folder)
    return codes, output, time.monotonic() - started
