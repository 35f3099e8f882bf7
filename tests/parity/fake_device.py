"""A device that is made up: functions that open an engine runner, each with its own fault.

They are called by name in worker processes, in place of `candidates.open_engine`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmprod.errors import EnvironmentMissing
from mmprod.graphs.runner import Array, Arrays, Runner
from mmprod.graphs.spec import GraphSpec
from mmprod.runners import trt
from mmprod.runners.cuda import Probe
from tests.parity.answers import REFERENCES, FakeRunner

BACKEND = "tensorrt_fake 9.9 RTX 4090"


def _runner(spec: GraphSpec, fault: Callable[[dict[str, Array]], dict[str, Array]]) -> Runner:
    """The right answers with a fault put into them."""

    def call(inputs: Arrays) -> dict[str, Array]:
        return fault(REFERENCES[spec.name](inputs))

    return FakeRunner(spec, call, BACKEND)


def honest(spec: GraphSpec, path: Path) -> Runner:
    return _runner(spec, lambda outputs: outputs)


def wrong_output(spec: GraphSpec, path: Path) -> Runner:
    return _runner(spec, lambda o: {name: value + value.dtype.type(8) for name, value in o.items()})


def nan(spec: GraphSpec, path: Path) -> Runner:
    return _runner(spec, lambda o: {n: np.full_like(v, np.nan) for n, v in o.items()})


def wrong_shape(spec: GraphSpec, path: Path) -> Runner:
    return _runner(spec, lambda o: {name: value[..., :-1] for name, value in o.items()})


def crash(spec: GraphSpec, path: Path) -> Runner:
    def die(outputs: dict[str, Array]) -> dict[str, Array]:
        sys.stderr.write("device: illegal memory access\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGSEGV)
        return outputs

    return _runner(spec, die)


def crash_when_opened(spec: GraphSpec, path: Path) -> Runner:
    os.abort()


def crash_on_the_copy(spec: GraphSpec, path: Path, *names: str) -> Runner:
    os.abort()


def killed(spec: GraphSpec, path: Path) -> Runner:
    """As the system does to a process beyond its memory limit."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def leave(spec: GraphSpec, path: Path) -> Runner:
    sys.exit(7)


def hang(spec: GraphSpec, path: Path) -> Runner:
    def sleep(outputs: dict[str, Array]) -> dict[str, Array]:
        time.sleep(1000)
        return outputs

    return _runner(spec, sleep)


def hang_when_opened(spec: GraphSpec, path: Path) -> Runner:
    """Says beside the engine that it was called, and never returns."""
    path.with_name("opening").touch()
    time.sleep(1000)
    raise AssertionError


def hang_with_a_child(spec: GraphSpec, path: Path) -> Runner:
    """Leaves its own child's number beside the engine and is silent."""
    child = os.fork()
    if child == 0:
        time.sleep(1000)
    path.with_name("child.pid").write_text(str(child))
    return hang(spec, path)


def bug(spec: GraphSpec, path: Path) -> Runner:
    return _runner(spec, lambda outputs: {"none": 1 // 0})  # type: ignore[dict-item]


def noisy(spec: GraphSpec, path: Path) -> Runner:
    """Prints where the frames go, as native libraries do."""
    os.write(1, b"[TRT] loaded engine\n")
    return honest(spec, path)


def nosy(spec: GraphSpec, path: Path) -> Runner:
    """Its backend is what it could find out or do."""
    found = []
    if os.environ.get("MMPROD_KEY_PASSPHRASE"):
        found.append("saw a secret")
    try:
        path.with_name("large").write_bytes(bytes(2 << 20))
        found.append("wrote a large file")
    except OSError:
        pass
    interfaces = Path("/proc/net/dev").read_text().splitlines()[2:]
    found.append(f"{len(interfaces)} interfaces")
    status = Path("/proc/self/status").read_text().splitlines()
    found += [line.replace("\t", " ") for line in status if line.startswith(("NoNew", "CapEff"))]
    return FakeRunner(spec, REFERENCES[spec.name], "; ".join(found))


def no_device(spec: GraphSpec, path: Path) -> Runner:
    raise EnvironmentMissing("not run: no CUDA device", hint="on the device")


def other_device(spec: GraphSpec, path: Path) -> Runner:
    """The real runner on a machine whose device the engine was not built for."""
    trt.find_device = lambda: Probe("sm86", "RTX 3090")  # type: ignore[assignment]
    return trt.TrtRunner(spec, path)


def other_version(spec: GraphSpec, path: Path) -> Runner:
    """The real runner on the right device with another version of the library."""
    library = types.ModuleType("tensorrt_fake")
    library.__version__ = "9.8"  # type: ignore[attr-defined]
    trt.find_device = lambda: Probe("sm89", "RTX 4090")  # type: ignore[assignment]
    trt.load_library = lambda flavour: library
    return trt.TrtRunner(spec, path)
