"""Runs a TensorRT engine on a CUDA device. The edge to `tensorrt_rtx` and `tensorrt`, which share
one interface; `engines/rtx.py` builds through the first two functions.

Written against the libraries' documented interface and exercised on a stand-in for the device (see
tests/runners/test_trt.py); not run on a device yet.
"""

from __future__ import annotations

import queue
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmprod.errors import EnvironmentMissing, IntegrityError
from mmprod.graphs.runner import Array, Arrays
from mmprod.graphs.spec import GraphSpec
from mmprod.manifest import read_json, sha256_bytes
from mmprod.runners.checks import check_inputs, check_outputs
from mmprod.runners.cuda import DeviceMemory, find_device
from mmprod.runners.trt_lane import Lane

FORMAT = 1
"""Of the JSON beside a plan, which `engines/record.py` writes."""

_TYPES = {"UINT8": "uint8", "INT32": "int32", "FLOAT": "float32"}
_BUILD_HINT = "build it here: mmprod build BUNDLE --trt --target "


def load_library(flavour: str) -> Any:
    """The module of a flavour. Raises EnvironmentMissing when it is absent or cannot be loaded."""
    try:
        if flavour == "rtx":
            import tensorrt_rtx

            return tensorrt_rtx
        import tensorrt

        return tensorrt
    except (ImportError, OSError) as error:
        fix = "pip install 'mmprod[trt]'" if flavour == "rtx" else "pip install tensorrt"
        raise EnvironmentMissing(f"{flavour}: {error}", hint=fix) from error


def record_log(library: Any, keep: Callable[[str], bool] = lambda message: False) -> Any:
    """A logger for the library that keeps what it is told instead of printing it.

    `errors`, `warnings`: lists of str; `kept`: messages of lower severity for which `keep` holds.
    """

    class Recorder(library.ILogger):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.kept: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                self.errors.append(message)
            elif severity.name == "WARNING":
                self.warnings.append(message)
            elif keep(message):
                self.kept.append(message)

    return Recorder()


def release_frames(error: BaseException) -> None:
    """Let go of the native objects that the traceback of an error would keep alive.

    Else Python may collect a builder later, in the middle of another one's log message, and the
    library then waits for its own lock for ever (seen with tensorrt_rtx 1.7.1).
    """
    traceback.clear_frames(error.__traceback__)


class TrtRunner:
    """One engine on the first CUDA device. Not run on a device yet (see the module).

    `contexts`: so many threads may be in a call at once, each in a lane (trt_lane.py) of its own;
    further ones wait. `cuda_graphs`: replay captured work instead of launching every kernel anew.
    The JSON beside the plan says what the plan is; it is checked against the plan, the device and
    the installed library before the library sees a byte. Raises EnvironmentMissing ("not run: ...")
    when this machine cannot run the engine, IntegrityError when the file is not what it should be.
    """

    spec: GraphSpec
    backend: str

    def __init__(
        self, spec: GraphSpec, plan: Path, *, contexts: int = 1, cuda_graphs: bool = False
    ) -> None:
        if contexts < 1:
            raise ValueError(f"{contexts} contexts cannot run anything")
        self.spec = spec
        self.plan = plan
        self.cuda_graphs = cuda_graphs
        self._lanes: list[Lane] = []
        self._idle: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        library, content = _check_machine(spec, plan)
        self._log = record_log(library)
        # Makes the device current, which the library needs from here on.
        memory: DeviceMemory | None = DeviceMemory()
        try:
            self._runtime = library.Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(content)
            if self._engine is None:
                raise IntegrityError(
                    f"{plan} is no engine: {_last(self._log)}", hint="mmprod bundle verify BUNDLE"
                )
            _check_interface(spec, plan, self._engine, library)
            for _ in range(contexts):
                memory = memory or DeviceMemory()
                lane = Lane(self._engine, memory, spec, str(plan), lambda: _last(self._log))
                self._lanes.append(lane)
                memory = None  # it is the lane's
        except BaseException as error:
            self.close()
            if memory is not None:
                memory.close()
            release_frames(error)
            raise
        for lane in self._lanes:
            self._idle.put(lane)
        self.backend = f"{library.__name__} {library.__version__} {find_device().name}"
        if cuda_graphs:
            self.backend += " (CUDA graphs)"

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs by name; see `graphs.runner.Runner`. May be called from several threads."""
        if not self._lanes:
            raise ValueError(f"the runner of {self.plan} is closed")
        sizes = check_inputs(self.spec, inputs, up_to_max=True)
        lane = self._idle.get()
        try:
            outputs = lane(inputs, cuda_graph=self.cuda_graphs)
        finally:
            self._idle.put(lane)
        return check_outputs(self.spec, outputs, sizes)

    def close(self) -> None:
        """Give the device back. No call may be under way."""
        for lane in self._lanes:
            lane.close()
        self._lanes = []
        self._engine = self._runtime = None


def _check_machine(spec: GraphSpec, plan: Path) -> tuple[Any, bytes]:
    """The library that runs this plan, once device, plan and version were found to fit; and the
    plan, read once: what was hashed is what the library gets.
    """
    device = find_device()
    if not device.found:
        raise EnvironmentMissing(
            "not run: no CUDA device",
            hint=f"{device.reason}; on the device: mmprod parity selftest BUNDLE",
        )
    info = read_json(plan.with_suffix(".json"), hint="build the engine again")
    if info.get("format") != FORMAT:
        raise IntegrityError(
            f"{plan.stem}.json has format {info.get('format')!r}; this mmprod reads {FORMAT}",
            hint="use the version of mmprod that built it, or build it again",
        )
    content = plan.read_bytes()
    if info["graph"] != spec.name or info["plan"]["sha256"] != sha256_bytes(content):
        raise IntegrityError(
            f"{plan} is not the engine of {spec.name} that {plan.stem}.json describes",
            hint="mmprod bundle verify BUNDLE",
        )
    if info["target"] != device.target:
        raise EnvironmentMissing(
            f"not run: built for {info['target']}, this device is {device.target} ({device.name})",
            hint=_BUILD_HINT + device.target,
        )
    library = load_library(info["flavour"])
    if info["version"] != library.__version__:
        raise EnvironmentMissing(
            f"not run: built with {library.__name__} {info['version']}, "
            f"{library.__version__} is installed, and plans fit one version only",
            hint=_BUILD_HINT + device.target,
        )
    return library, content


def _check_interface(spec: GraphSpec, plan: Path, engine: Any, library: Any) -> None:
    """The engine has exactly the inputs and outputs of `spec`, in any order, or IntegrityError."""
    found = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        mode = "input" if engine.get_tensor_mode(name) == library.TensorIOMode.INPUT else "output"
        found[name] = (mode, _TYPES.get(kind, kind))
    wanted = {t.name: ("input", t.dtype) for t in spec.inputs}
    wanted |= {t.name: ("output", t.dtype) for t in spec.outputs}
    if found != wanted:
        raise IntegrityError(
            f"{plan} is not the graph {spec.name}: it has {found}, not {wanted}",
            hint="mmprod bundle verify BUNDLE; was the bundle made by this version?",
        )


def _last(log: Any) -> str:
    return log.errors[-1].strip() if log.errors else "TensorRT gave no reason"
