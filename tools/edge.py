"""What a bundle costs at the edge: modules, start-up and memory of one answer without torch.

    python tools/edge.py BUNDLE [--prompt TEXT] [--runs 5]

Each run is a process of its own that opens the bundle (every hash checked), answers one
text_to_image with ONNX Runtime and ends. Printed: wall and processor time from the start of the
process to the opened bundle and to the answer, resident memory before and after (VmHWM, the most
there was), and which distributions had been imported. torch among them is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mmprod

CHILD = """
import json, sys, time
from importlib.metadata import packages_distributions
from pathlib import Path


def peak_mib():
    line = next(x for x in open("/proc/self/status") if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


bare, before = peak_mib(), set(sys.modules)
from mmprod.bundle import open_bundle
from mmprod.data.tokenizer import Tokenizer
from mmprod.runners.ort import OrtRunner
from mmprod.sampling import generate_images

bundle = open_bundle(sys.argv[1])
opened, opened_cpu = time.time(), time.process_time()
graph = bundle.artefacts(role="onnx", graph="text_to_image", precision="fp32")[0]
runner = OrtRunner(bundle.specs["text_to_image"], bundle.path(graph))
tokenizer = Tokenizer.load(bundle.path(bundle.artefacts(role="tokenizer")[0]))
pictures = generate_images(runner, tokenizer, [sys.argv[2]], seed=0)
answered, answered_cpu = time.time(), time.process_time()
names = packages_distributions()
loaded = {d for m in set(sys.modules) - before for d in names.get(m.partition(".")[0], ())}
print(json.dumps({
    "opened": opened, "opened_cpu_ms": 1e3 * opened_cpu,
    "answered": answered, "answered_cpu_ms": 1e3 * answered_cpu,
    "bare_mib": bare, "peak_mib": peak_mib(), "picture": list(pictures.shape),
    "modules": len(sys.modules), "distributions": sorted(loaded), "torch": "torch" in sys.modules,
}))
"""


def measure(bundle: Path, prompt: str) -> dict[str, Any]:
    """One process. Times in ms since it was started."""
    root = str(Path(mmprod.__file__).parents[1])
    started = time.time()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(bundle), prompt],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    for name in ("opened", "answered"):
        found[f"{name}_ms"] = 1e3 * (found.pop(name) - started)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="What a bundle costs at the edge.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt", default="a face with red hair")
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    runs = [measure(asked.bundle, asked.prompt) for _ in range(asked.runs)]
    for name in (
        "opened_ms",
        "opened_cpu_ms",
        "answered_ms",
        "answered_cpu_ms",
        "bare_mib",
        "peak_mib",
    ):
        print(f"{name:16} {statistics.median(run[name] for run in runs):8.0f}")
    print(f"{'modules':16} {runs[0]['modules']:8}")
    print(f"distributions    {', '.join(runs[0]['distributions'])}")
    if runs[0]["torch"]:
        print("torch was imported", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
