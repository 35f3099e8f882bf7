"""`python -m tools.bench`: one table of ours, the peer, their ratio, the aim and the verdict."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import torch

from mmprod.training.allocator import keep_freed_memory
from tools.bench import codec, fusion, loop, quantizers, sampler, waiting
from tools.bench.machine import described, machine
from tools.bench.measure import Row, peak_above_baseline

PARTS = ("quantizer", "codec", "attention", "fusion", "sampler", "loop", "waiting")
BESIDE_PEERS = ("quantizer", "codec", "attention")
PEERS = {"diffusers": "diffusers", "vector_quantize_pytorch": "vector-quantize-pytorch"}
MISSING_PEERS = 3
"""exit code"""


def missing_peers() -> list[str]:
    """Peers to install, by package name."""
    return [name for module, name in PEERS.items() if importlib.util.find_spec(module) is None]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts only")
    parser.add_argument("--rounds", type=int, default=5, help="the best of so many (default 5)")
    parser.add_argument(
        "--batch",
        type=int,
        default=64,
        help="of the codec step; half of it in fusion, a quarter in waiting (default 64)",
    )
    parser.add_argument("--threads", type=int, default=1, help="(default 1)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--memory-of", choices=quantizers.QUANTIZERS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def measured(options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Rows and notes of the parts asked for."""
    parts = options.only or PARTS
    rows: list[Row] = []
    notes: list[str] = []
    if "quantizer" in parts:
        rows += quantizers.rows(options.rounds)
    if "codec" in parts:
        rows += codec.rows(options.rounds, options.batch)
        notes.append(codec.note())
    if "attention" in parts:
        rows += codec.attention_rows(options.rounds)
    if "fusion" in parts:
        rows += fusion.rows(options.rounds, options.batch // 2)
    if "sampler" in parts:
        rows += sampler.rows(options.rounds)
    if "loop" in parts:
        rows += loop.rows(8 * options.rounds)
    if "waiting" in parts:
        rows += waiting.rows(options.rounds, options.batch // 4)
    return rows, notes


def table(rows: Sequence[Row]) -> list[str]:
    """Aligned columns."""
    head = ("what", "ours", "peer", "theirs", "ratio", "aim", "")
    verdicts = {None: "", True: "pass", False: "MISS"}
    cells = [
        (
            row.what,
            f"{row.ours:.1f} {row.unit}",
            row.peer,
            f"{row.theirs:.1f} {row.unit}",
            f"{row.times:.2f} x",
            row.bar,
            verdicts[row.met],
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in (head, *cells)) for i in range(len(head))]
    return [
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
        for line in (head, *cells)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table or JSON. A missed aim is a figure, not an error; missing peers are."""
    options = parse(arguments)
    missing = missing_peers()
    if missing and set(options.only or PARTS) & set(BESIDE_PEERS):
        sys.stderr.write(
            f"the bench compares with {', '.join(missing)}, not installed here. Install with:\n"
            '  pip install -c constraints.txt -e ".[bench]"\n'
        )
        return MISSING_PEERS
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.memory_of:
        work = quantizers.QUANTIZERS[options.memory_of]()
        sys.stdout.write(f"{peak_above_baseline(work)}\n")
        return 0
    keep_freed_memory()  # as in every training on a processor; so for the peers
    found = machine()
    rows, notes = measured(options)
    if options.json:
        kept = [asdict(row) | {"times": row.times} for row in rows]
        sys.stdout.write(json.dumps({"machine": found, "rows": kept, "notes": notes}) + "\n")
        return 0
    sys.stdout.write("\n".join([*described(found), *notes, "", *table(rows)]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
