"""What `mmprod --help` costs: it imports no heavy library and answers within the limit.

    python tools/imports.py [--limit-s 0.5] [--repeat 5]

The time is processor time, the least of several runs: other work on the machine hardly counts.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAVY = frozenset(
    {"datasets", "deepspeed", "onnx", "onnxruntime", "onnxscript", "pandas", "pyarrow"}
    | {"tensorboard", "tensorrt", "tensorrt_rtx", "tokenizers", "torch"}
)
HELP = ("-m", "mmprod", "--help")


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter on the checkout. Raises CalledProcessError when it fails."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "100",
        "PYTHONDONTWRITEBYTECODE": "",  # an installed package is compiled
        "PYTHONPYCACHEPREFIX": str(ROOT / ".cache" / "bytecode"),
    }
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=environment, cwd=ROOT, text=True, capture_output=True, check=True
    )


def imported_packages(*arguments: str) -> set[str]:
    """Top-level packages that `python ARGUMENTS` imports, from the interpreter's own import log."""
    log = run_python("-X", "importtime", *arguments).stderr
    lines = (line for line in log.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def best_time_s(repeat: int, *arguments: str) -> float:
    """The least processor time of `repeat` runs of `python ARGUMENTS`, in seconds."""
    times = []
    for _ in range(repeat):
        start = _children_s()
        run_python(*arguments)
        times.append(_children_s() - start)
    return min(times)


def _children_s() -> float:
    """Processor time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit-s", type=float, default=0.5)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    heavy = sorted(imported_packages(*HELP) & HEAVY)
    best_s = best_time_s(arguments.repeat, *HELP)
    print(f"mmprod --help: {best_s:.2f} s (at most {arguments.limit_s:.2f} s)")
    if heavy:
        print(f"mmprod --help imports {', '.join(heavy)}: import them inside the command")
    return 1 if heavy or best_s > arguments.limit_s else 0


if __name__ == "__main__":
    sys.exit(main())
