"""What exporting and building a graph of a large model takes: seconds and peak memory.

    python tools/builds.py base [--graph fusion_step] [--precision fp16] [--target sm89]
                                [--memory 20] [--work FOLDER] [--out lines.jsonl]

The weights are fresh: what an export and a build need does not depend on their values. Export and
build each run in a process of their own, whose largest resident set is told. The export may take
--memory GB of address space and a build as much resident memory, then it ends with an error, which
is printed as the result. A line of JSON per stage; --work keeps the files.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mmprod.config.load import load_config
from mmprod.engines.job import BuildJob
from mmprod.engines.pool import Limits, run_jobs
from mmprod.errors import MmprodError
from mmprod.graphs.catalog import build_catalog
from mmprod.log import configure_logging
from mmprod.manifest import sha256_file

GIB = 2**30
STAGES = ("export", "build")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="preset or file")
    parser.add_argument("--graph", default="fusion_step")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--target", default="sm89")
    parser.add_argument("--memory", type=float, default=20.0, help="GB for either stage")
    parser.add_argument("--work", type=Path, help="folder for graph and engine; not kept if absent")
    parser.add_argument("--out", type=Path, help="file that lines of JSON are added to")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        configure_logging(0)
        print(json.dumps(export(given) if given.stage == "export" else build(given)))
        return 0
    with tempfile.TemporaryDirectory(prefix="mmprod-builds-") as folder:
        given.work = given.work or Path(folder)
        return 0 if all(staged(given, stage) for stage in STAGES) else 1


def staged(given: argparse.Namespace, stage: str) -> bool:
    """Run a stage in a process of its own and tell what it took."""
    asked = ("graph", "precision", "target", "memory", "work")
    options = [word for name in asked for word in (f"--{name}", str(getattr(given, name)))]
    command = [sys.executable, __file__, given.config, *options, "--stage", stage]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    told: dict[str, Any] = {"failed": f"the process ended with {done.returncode}"}
    if done.returncode == 0:
        told = json.loads(done.stdout.splitlines()[-1])
    head = {name: getattr(given, name) for name in ("config", "graph", "precision", "target")}
    seconds = round(time.perf_counter() - start, 1)
    line = json.dumps({**head, "stage": stage, "process_seconds": seconds, **told})
    print(line)
    if given.out:
        with given.out.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
    return "failed" not in told


def export(given: argparse.Namespace) -> dict[str, Any]:
    """Trace the graph, cast it, write it."""
    import torch

    from mmprod.export.graph import assemble, parts_of
    from mmprod.export.graph_file import save_graph
    from mmprod.export.onnx_export import export_part
    from mmprod.graphs.modules import build_module
    from mmprod.models.codec import build_codec
    from mmprod.models.fusion import build_fusion

    resource.setrlimit(resource.RLIMIT_AS, (round(given.memory * GIB),) * 2)
    config = load_config(given.config)
    dims = config.dims(config.data.vocabulary)
    start = time.perf_counter()
    torch.manual_seed(0)
    fusion, codec = build_fusion(config.fusion, dims).eval(), build_codec(config.codec).eval()
    spec = build_catalog(dims, config.sampler)[given.graph]
    module = build_module(
        given.graph, codec=codec, fusion=fusion, dims=dims, sampler=config.sampler
    )
    built = time.perf_counter()
    try:
        traced = {part.name: export_part(part) for part in parts_of(spec, module)}
        model = assemble(spec, module, traced, given.precision)
        del traced
        files = save_graph(model, given.work / f"{given.graph}.onnx")
    except (MemoryError, RuntimeError, MmprodError) as error:
        return {"failed": f"{type(error).__name__}: {error}"[:500], **peak(resource.RUSAGE_SELF)}
    return {
        "parameters": sum(p.numel() for p in fusion.parameters()),
        "model_seconds": round(built - start, 1),
        "seconds": round(time.perf_counter() - built, 1),
        "onnx_bytes": sum(path.stat().st_size for path in files),
        **peak(resource.RUSAGE_SELF),
    }


def build(given: argparse.Namespace) -> dict[str, Any]:
    """Build an engine of the graph that was written."""
    config = load_config(given.config)
    spec = build_catalog(config.dims(config.data.vocabulary), config.sampler)[given.graph]
    onnx, plan = given.work / f"{given.graph}.onnx", given.work / f"{given.graph}.plan"
    job = BuildJob.of(
        spec,
        onnx=onnx.resolve(),
        plan=plan.resolve(),
        precision=given.precision,
        target=("rtx", given.target),
        files=[(path.name, sha256_file(path)) for path in sorted(given.work.glob("*.onnx*"))],
    )
    limits = Limits(workers=1, seconds=7200, memory_bytes=round(given.memory * GIB))
    ((_, outcome),) = run_jobs([job], limits=limits)
    used = peak(resource.RUSAGE_CHILDREN)
    if isinstance(outcome, MmprodError):
        return {"failed": outcome.message, **used}
    return {
        "seconds": outcome.seconds,
        "plan_bytes": plan.stat().st_size,
        "kernels": outcome.layers["kernels"],
        "fused_attention": outcome.layers["fused_attention"],
        "tensorrt": outcome.version,
        **used,
    }


def peak(who: int) -> dict[str, Any]:
    """Largest resident set and processor time of this process, or of the children that ended."""
    used = resource.getrusage(who)
    return {
        "peak_gb": round(used.ru_maxrss * 1024 / GIB, 2),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
