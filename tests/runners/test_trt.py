"""The TensorRT runner. Without a device it says so; its calls are checked on a stand-in for the
library whose "device" is host memory; the `gpu` test builds and runs a real engine."""

from __future__ import annotations

import ctypes
import dataclasses
import enum
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError
from mmprod.graphs.spec import Dim, GraphSpec, Tensor
from mmprod.manifest import FileEntry, write_json
from mmprod.runners import trt
from mmprod.runners.cuda import Probe
from mmprod.runners.trt import TrtRunner

BATCH = Dim("batch", 1, 4, 16)
SPEC = GraphSpec(
    "toy",
    (
        Tensor("tokens", "int32", (BATCH, 3), "tokens", below=100),
        Tensor("noise", "float32", (BATCH, 3), "noise"),
    ),
    (Tensor("sums", "float32", (BATCH, 3), "logits"), Tensor("bytes", "uint8", (BATCH,), "pixels")),
    "tokens + noise, and a sum as a byte",
)


class Mode(enum.Enum):
    INPUT = 0
    OUTPUT = 1


class HostMemory:
    """`DeviceMemory` on the host: addresses are real, so wrong sizes and stale buffers show."""

    stream = 7

    def __init__(self) -> None:
        self.live: dict[int, Any] = {}
        self.allocated = 0
        self.pending: list[Callable[[], None]] = []
        self.closed = 0
        self.recording: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launched = 0

    def begin_capture(self) -> None:
        assert self.recording is None
        self.recording = []

    def end_capture(self) -> int:
        assert self.recording is not None
        handle = 100 + len(self.graphs)
        self.graphs[handle], self.recording = self.recording, None
        return handle

    def launch_graph(self, graph: int) -> None:
        self.launched += 1
        for step in self.graphs[graph]:
            step()

    def drop_graph(self, graph: int) -> None:
        self.graphs[graph] = [lambda: pytest.fail("a dropped graph was launched")]

    def activate(self) -> None:
        assert not self.closed

    def allocate(self, size: int) -> int:
        buffer = ctypes.create_string_buffer(size)
        address = ctypes.addressof(buffer)
        self.live[address] = buffer
        self.allocated += 1
        return address

    def free(self, address: int) -> None:
        del self.live[address]

    def upload(self, address: int, value: np.ndarray[Any, Any]) -> None:
        assert value.nbytes <= len(self.live[address])
        ctypes.memmove(address, value.ctypes.data, value.nbytes)

    def download(self, value: np.ndarray[Any, Any], address: int) -> None:
        assert value.nbytes <= len(self.live[address])
        source = self.live[address]  # copied when the caller waits, as on a device
        self.pending.append(lambda: void(ctypes.memmove(value.ctypes.data, source, value.nbytes)))

    def synchronize(self) -> None:
        while self.pending:
            self.pending.pop(0)()

    def close(self) -> None:
        self.closed += 1


def void(_: object) -> None:
    return None


class Context:
    """Computes the toy graph on the addresses it was given."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return self.library.refuse != "shape"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = self.shapes["tokens"][0] + (self.library.refuse == "output shape")
        return {"sums": (batch, 3), "bytes": (batch,)}[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == HostMemory.stream
        self.library.runs.append(self.profile)
        memory = self.library.memory
        if memory is not None and memory.recording is not None:
            addresses, shapes = dict(self.addresses), dict(self.shapes)
            memory.recording.append(lambda: self._compute(addresses, shapes))
            return self.library.refuse != "capture"
        self._compute(self.addresses, self.shapes)
        return self.library.refuse != "run"

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return self.library.refuse != "profile"

    def _compute(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        batch = shapes["tokens"][0]

        def view(name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            raw = (ctypes.c_char * size).from_address(addresses[name])
            return np.frombuffer(raw, dtype).reshape(shape)

        sums = view("tokens", np.int32, (batch, 3)) + view("noise", np.float32, (batch, 3))
        view("sums", np.float32, (batch, 3))[:] = sums
        view("bytes", np.uint8, (batch,))[:] = sums.sum(1)


class Library(types.ModuleType):
    """What the runner uses of `tensorrt_rtx`."""

    __version__ = "9.9"
    TensorIOMode = Mode

    def __init__(self) -> None:
        super().__init__("tensorrt_toy")
        self.refuse = ""
        self.profiles = [(1, 16)]
        self.runs: list[int] = []
        self.memory: HostMemory | None = None
        library = self
        kinds = {"tokens": "INT32", "noise": "FLOAT", "sums": "FLOAT", "bytes": "UINT8"}

        class ILogger:
            pass

        class Engine:
            num_io_tensors = 4

            @property
            def num_optimization_profiles(self) -> int:
                return len(library.profiles)

            def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
                low, high = library.profiles[profile]
                return [(low, 3), (high, 3), (high, 3)]

            def get_tensor_name(self, index: int) -> str:
                return list(kinds)[index]

            def get_tensor_dtype(self, name: str) -> Any:
                kind = "HALF" if library.refuse == name else kinds[name]
                return types.SimpleNamespace(name=kind)

            def get_tensor_mode(self, name: str) -> Mode:
                return Mode.INPUT if name in ("tokens", "noise") else Mode.OUTPUT

            def create_execution_context(self) -> Context | None:
                return None if library.refuse == "context" else Context(library)

        class Runtime:
            def __init__(self, log: Any) -> None:
                self.log = log

            def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
                if library.refuse == "plan":
                    self.log.log(types.SimpleNamespace(name="ERROR"), "magic tag does not match\n")
                    return None
                return Engine()

        self.ILogger, self.Runtime = ILogger, Runtime


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan and the JSON beside it, for sm89 and version 9.9."""
    path = tmp_path / "toy.fp16.plan"
    path.write_bytes(b"plan")
    describe(path)
    return path


def describe(path: Path, **changes: Any) -> None:
    entry = FileEntry.of(path.parent, path).as_dict()
    known = {
        "format": 1,
        "graph": "toy",
        "flavour": "rtx",
        "version": "9.9",
        "target": "sm89",
        "plan": entry,
    }
    write_json(path.with_suffix(".json"), {**known, **changes})


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> tuple[Library, HostMemory]:
    """A machine with an sm89 device and the stand-in for the library."""
    library, memory = Library(), HostMemory()
    library.memory = memory
    monkeypatch.setattr(trt, "find_device", lambda: Probe("sm89", "RTX 4090"))
    monkeypatch.setattr(trt, "load_library", lambda flavour: library)
    monkeypatch.setattr(trt, "DeviceMemory", lambda: memory)
    return library, memory


def inputs(batch: int) -> dict[str, np.ndarray[Any, Any]]:
    tokens = np.arange(batch * 3, dtype=np.int32).reshape(batch, 3)
    return {"tokens": tokens, "noise": np.full((batch, 3), 0.25, np.float32)}


def test_without_a_device_it_says_so_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt, "find_device", lambda: Probe(reason="no driver here"))
    monkeypatch.setattr(trt, "load_library", lambda flavour: pytest.fail("library was touched"))
    with pytest.raises(EnvironmentMissing) as caught:
        TrtRunner(SPEC, tmp_path / "missing.plan")
    assert caught.value.message == "not run: no CUDA device"
    assert "no driver here" in caught.value.hint
    assert caught.value.exit_code == 3


def test_batches_of_many_sizes(plan: Path, device: tuple[Library, HostMemory]) -> None:
    _, memory = device
    runner = TrtRunner(SPEC, plan)
    assert runner.backend == "tensorrt_toy 9.9 RTX 4090"
    for batch in (2, 16, 1, 3):
        given = inputs(batch)
        found = runner(given)
        assert (found["sums"] == given["tokens"] + np.float32(0.25)).all()
        assert (found["bytes"] == (given["tokens"] + 0.25).sum(1).astype(np.uint8)).all()
        assert found["bytes"].dtype == np.uint8
    assert memory.allocated == 8, "four buffers, each grown once"
    assert len(memory.live) == 4
    runner.close()
    runner.close()
    assert memory.live == {}
    assert memory.closed == 1
    with pytest.raises(ValueError, match="closed"):
        runner(inputs(1))


def test_inputs_need_not_be_contiguous(plan: Path, device: tuple[Library, HostMemory]) -> None:
    given = inputs(4)
    wide = np.zeros((4, 6), np.int32)
    wide[:, ::2] = given["tokens"]
    found = TrtRunner(SPEC, plan)({**given, "tokens": wide[:, ::2]})
    assert (found["sums"] == given["tokens"] + np.float32(0.25)).all()


def test_cuda_graphs_are_captured_once_per_shape_and_replayed(
    plan: Path, device: tuple[Library, HostMemory]
) -> None:
    library, memory = device
    runner = TrtRunner(SPEC, plan, cuda_graphs=True)
    assert runner.backend.endswith("(CUDA graphs)")
    for count, batch in enumerate((4, 4, 2, 4, 2)):
        given = inputs(batch)
        given["noise"] += count
        assert (runner(given)["sums"] == given["tokens"] + np.float32(0.25) + count).all()
    assert memory.launched == 5 and len(memory.graphs) == 2
    assert len(library.runs) == 4, "each shape: once to settle, once to record"
    runner(inputs(16))  # the buffers grow: what was captured points to memory that is gone
    assert (runner(inputs(4))["sums"] == inputs(4)["tokens"] + np.float32(0.25)).all()
    assert len(memory.graphs) == 4
    runner.close()
    assert memory.live == {}


def test_an_engine_that_cannot_be_captured_is_an_error_not_a_slower_way(
    plan: Path, device: tuple[Library, HostMemory]
) -> None:
    library, memory = device
    library.refuse = "capture"
    with pytest.raises(IntegrityError, match="refused to be captured in a CUDA graph"):
        TrtRunner(SPEC, plan, cuda_graphs=True)(inputs(2))
    assert memory.recording is None, "the stream records no more"


def test_each_profile_has_a_context_of_its_own(
    plan: Path, device: tuple[Library, HostMemory]
) -> None:
    library, _ = device
    library.profiles = [(1, 1), (2, 8)]
    runner = TrtRunner(SPEC, plan)
    for batch in (1, 5, 8, 1):
        assert runner(inputs(batch))["sums"].shape == (batch, 3)
    assert library.runs == [0, 1, 1, 0]
    with pytest.raises(ConfigError, match="none of its 2 profiles takes"):
        runner(inputs(9))
    library.refuse = "profile"
    with pytest.raises(IntegrityError, match="refused profile 1"):
        TrtRunner(SPEC, plan)(inputs(2))


def test_several_threads_each_in_a_lane(
    plan: Path, device: tuple[Library, HostMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[HostMemory] = []

    def memory() -> HostMemory:
        made.append(HostMemory())
        return made[-1]

    monkeypatch.setattr(trt, "DeviceMemory", memory)
    runner = TrtRunner(SPEC, plan, contexts=3)
    assert len(made) == 3
    meeting = threading.Barrier(3, timeout=20)
    for one in made:
        monkeypatch.setattr(one, "activate", lambda: void(meeting.wait()))

    def call(batch: int) -> bool:
        given = inputs(batch)
        return bool((runner(given)["sums"] == given["tokens"] + np.float32(0.25)).all())

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(call, (1, 2, 3))), "three calls were under way at once"
    for one in made:
        monkeypatch.setattr(one, "activate", lambda: None)
    runner.close()
    assert [(one.closed, one.live) for one in made] == [(1, {})] * 3
    with pytest.raises(ValueError, match="0 contexts"):
        TrtRunner(SPEC, plan, contexts=0)


def test_a_batch_above_the_profile_is_a_usage_error(
    plan: Path, device: tuple[Library, HostMemory]
) -> None:
    with pytest.raises(ConfigError, match=r"batch 17 is outside 1\.\.16"):
        TrtRunner(SPEC, plan)(inputs(17))


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        ("plan", "is no engine: magic tag does not match"),
        ("noise", "is not the graph toy"),
    ],
)
def test_a_plan_that_is_not_the_engine(
    plan: Path, device: tuple[Library, HostMemory], refuse: str, message: str
) -> None:
    library, memory = device
    library.refuse = refuse
    with pytest.raises(IntegrityError, match=message):
        TrtRunner(SPEC, plan)
    assert memory.closed == 1


def test_a_device_without_room(plan: Path, device: tuple[Library, HostMemory]) -> None:
    library, memory = device
    library.refuse = "context"
    with pytest.raises(EnvironmentMissing, match="no execution context"):
        TrtRunner(SPEC, plan)
    assert memory.closed == 1


@pytest.mark.parametrize(
    ("refuse", "message"),
    [
        ("shape", "refused the shape of tokens"),
        ("run", "refused to run"),
        ("output shape", r"output sums is float32 \(3, 3\)"),
    ],
)
def test_what_goes_wrong_in_a_call(
    plan: Path, device: tuple[Library, HostMemory], refuse: str, message: str
) -> None:
    runner = TrtRunner(SPEC, plan)
    device[0].refuse = refuse
    with pytest.raises(IntegrityError, match=message):
        runner(inputs(2))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": "sm86"}, EnvironmentMissing, "not run: built for sm86, this device is sm89"),
        (
            {"version": "9.8"},
            EnvironmentMissing,
            r"built with tensorrt_toy 9\.8, 9\.9 is installed",
        ),
        ({"format": 2}, IntegrityError, "has format 2; this mmprod reads 1"),
        ({"graph": "other"}, IntegrityError, "is not the engine of toy"),
        ({"plan": {"sha256": "0" * 64}}, IntegrityError, "is not the engine of toy"),
    ],
)
def test_a_plan_of_another_device_version_or_graph(
    plan: Path,
    device: tuple[Library, HostMemory],
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    describe(plan, **changes)
    with pytest.raises(error, match=message):
        TrtRunner(SPEC, plan)


def test_a_plan_without_its_json(plan: Path, device: tuple[Library, HostMemory]) -> None:
    plan.with_suffix(".json").unlink()
    with pytest.raises(IntegrityError, match=r"toy\.fp16\.json is missing"):
        TrtRunner(SPEC, plan)


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EnvironmentMissing, match="tensorrt") as caught:
        trt.load_library("tensorrt")
    assert caught.value.hint == "pip install tensorrt"


def test_the_real_library_has_all_that_the_runner_uses() -> None:
    library = trt.load_library("rtx")
    used = {
        "Runtime": ["deserialize_cuda_engine"],
        "ICudaEngine": [
            "create_execution_context",
            "get_tensor_dtype",
            "get_tensor_mode",
            "get_tensor_name",
            "get_tensor_profile_shape",
            "num_io_tensors",
            "num_optimization_profiles",
        ],
        "IExecutionContext": [
            "execute_async_v3",
            "get_tensor_shape",
            "set_input_shape",
            "set_optimization_profile_async",
            "set_tensor_address",
        ],
        "TensorIOMode": ["INPUT", "OUTPUT"],
        "DataType": ["FLOAT", "INT32", "UINT8"],
    }
    for kind, names in used.items():
        assert set(names) <= set(dir(getattr(library, kind)))


@pytest.mark.gpu
def test_a_real_engine_on_the_device(tmp_path: Path) -> None:
    """Builds for the device and compares with NumPy."""
    import onnx
    from onnx import numpy_helper

    from mmprod.engines import rtx
    from mmprod.engines.flavours import choose_flavour
    from mmprod.engines.targets import check_request
    from mmprod.runners.cuda import find_device
    from tests.engines import small_graphs

    path, target = tmp_path / "graph.onnx", find_device().target
    flavour = choose_flavour("auto", [target]).name
    try:
        check_request("fp32", target, flavour)
    except ConfigError as error:
        pytest.skip(error.message)
    spec = small_graphs.matmul(path)
    job = small_graphs.job(spec, path, "fp32", target, "matmul.fp32.plan")
    result = rtx.build(dataclasses.replace(job, flavour=flavour))
    plan = Path(job.plan)
    describe(plan, graph="matmul", version=result.version, target=target, flavour=flavour)
    weights = [numpy_helper.to_array(w) for w in onnx.load(path).graph.initializer]
    runner = TrtRunner(spec, plan, contexts=2, cuda_graphs=True)
    for batch in (1, 5, 16, 5):
        x = np.random.default_rng(batch).standard_normal((batch, 16)).astype(np.float32)
        wanted = np.maximum(x @ weights[0], 0) @ weights[1]
        np.testing.assert_allclose(runner({"x": x})["y"], wanted, rtol=1e-5, atol=1e-4)
    runner.close()
