"""The server that every deployment starts: `mmprod serve` with the arguments its options mean, and
how much memory it needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmprod.deploying.facts import Facts
from mmprod.deploying.gpus import GPUS, JETSON, NONE, folded
from mmprod.deploying.options import Options

LIVE, READY, METRICS = "/v2/health/live", "/v2/health/ready", "/metrics"
PODS = "pods"
"""Appended to the name of the service that has an address for every pod."""
USER = 10001
"""Of every container: not root, and no user of a base image."""
DRAIN_S = 30
CORES = 4
"""Processors that a replica may use. Every graph has its own threads, so their number is said."""
BASE_MIB = 256
TIMES = 3
"""A graph in ONNX Runtime takes its weights once as the file has them and once packed for the
processor, and its activations; `docs/deploy.md` has what was measured."""
STEP_MIB = 64


def serve_arguments(options: Options, bundle: str, host: str, key_file: str | None) -> list[str]:
    """What follows `mmprod`. key_file: where the key lies, None for a server that asks for none."""
    serving = options.serving
    found = ["serve", bundle, "--host", host, "--port", str(serving.port)]
    found += ["--grpc-port", str(serving.grpc_port), "--precision", serving.precision]
    if on_engines(options):
        found += ["--backend", "trt"]
    if serving.shadow:
        found += ["--shadow", f"{serving.shadow:g}"]
    found += ["--threads", str(CORES), "--drain-s", str(DRAIN_S)]
    return found + (["--key-file", key_file] if key_file else [])


def on_engines(options: Options) -> bool:
    """Whether engines answer: where a GPU is named. ONNX Runtime here runs on processors."""
    return options.serving.gpu != NONE


def target_of(options: Options) -> str:
    """The compute capability of the GPU that is named, "" for none."""
    return GPUS.get(folded(options.serving.gpu), "")


def is_jetson(options: Options) -> bool:
    return folded(options.serving.gpu) in JETSON


def memory_mib(facts: Facts, options: Options) -> int:
    """What one replica needs, derived from the sizes of what it loads, unless it was said."""
    return options.serving.memory_mib or needed_mib(facts, options)


def needed_mib(facts: Facts, options: Options) -> int:
    """The interpreter with its libraries, and `TIMES` the bytes of all graphs; with shadows those
    of the reference, too. Rounded up.
    """
    loaded: Sequence[int] = ()
    if on_engines(options):
        loaded = [e.bytes for e in facts.engines if e.target == target_of(options)]
    if not loaded:
        # On processors; or the device builds its engines from these graphs.
        loaded = [g.bytes for g in facts.of_precision(options.serving.precision)]
    if options.serving.shadow:
        loaded = [*loaded, *(g.bytes for g in facts.of_precision("fp32"))]
    mib = BASE_MIB + TIMES * sum(loaded) / 2**20
    return int(-(-mib // STEP_MIB) * STEP_MIB)
