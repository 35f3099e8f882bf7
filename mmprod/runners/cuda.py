"""A CUDA device through its driver alone: is there one, and memory and a stream on it.

Only `libcuda.so.1` is used, by ctypes: it comes with the driver, so it is there whenever a device
is, and no further package is needed. Looking for a device happens in a subprocess, because a broken
driver may end the process that asks.

The part that works on a device (`DeviceMemory`) is written against the driver's documented
interface and has not run on a device yet.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mmprod
from mmprod.errors import EnvironmentMissing
from mmprod.graphs.runner import Array

LIBRARY = "libcuda.so.1"
KERNEL_MODULE = Path("/proc/driver/nvidia/version")
PROBE_SECONDS = 60
_KERNEL_MODULE = re.compile(r"Kernel Module.*?\s(\d+\.[\d.]+)")
_CAPTURE_THIS_THREAD = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: never waits for the default stream
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True)
class Probe:
    """The first CUDA device: its target ("sm89") and name; or both empty and the reason why not.

    `driver`: its version and that of the CUDA interface it offers, e.g. "570.86.10, CUDA 12.8".
    """

    target: str = ""
    name: str = ""
    reason: str = ""
    driver: str = ""

    @property
    def found(self) -> bool:
        return bool(self.target)


@functools.cache
def find_device() -> Probe:
    """Ask the driver, in a subprocess, once per process."""
    command = [sys.executable, "-P", "-m", "mmprod.runners.cuda"]
    try:
        done = subprocess.run(
            command,
            env=child_environment(),
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Probe(reason=f"the driver gave no answer in {PROBE_SECONDS} s")
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        return Probe(reason=f"asking the driver failed (exit {done.returncode}): {last[0]}")
    return Probe(**json.loads(done.stdout))


def child_environment() -> dict[str, str]:
    """The environment for a subprocess that imports this very mmprod."""
    paths = [str(Path(mmprod.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}


def probe_here() -> Probe:
    """Ask the driver in this process."""
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError:
        return Probe(reason=f"no NVIDIA driver: {LIBRARY} was not found")
    code = driver.cuInit(0)
    if code != 0:
        return Probe(reason=f"the NVIDIA driver has no device for us: cuInit gave {code}")
    count, device = ctypes.c_int(), ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return Probe(reason="the NVIDIA driver lists no device")
    _check(driver.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    major, minor = ctypes.c_int(), ctypes.c_int()
    for value, attribute in ((major, _MAJOR), (minor, _MINOR)):
        code = driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        _check(code, "cuDeviceGetAttribute")
    name = ctypes.create_string_buffer(128)
    _check(driver.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    return Probe(
        target=f"sm{major.value}{minor.value}",
        name=name.value.decode(errors="replace"),
        driver=_driver_version(driver),
    )


def _driver_version(driver: Any) -> str:
    version = ctypes.c_int()
    _check(driver.cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
    offered = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    try:
        found = _KERNEL_MODULE.search(KERNEL_MODULE.read_text())
    except OSError:
        found = None
    return f"{found[1]}, {offered}" if found else offered


class DeviceMemory:
    """Buffers and a stream on the first device, in its primary context, which TensorRT uses too."""

    def __init__(self) -> None:
        self._driver: Any = ctypes.CDLL(LIBRARY)
        self._device = ctypes.c_int()
        self._context, self._stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self.activate()
        self._call("cuStreamCreate", ctypes.byref(self._stream), _NON_BLOCKING)

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it."""
        return int(self._stream.value or 0)

    def activate(self) -> None:
        """Make the device current in the calling thread."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """Address of `size` new bytes on the device."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return int(address.value)

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, value: Array) -> None:
        """Copy a contiguous array to the device; it must live until `synchronize`."""
        source, size = ctypes.c_void_p(value.ctypes.data), ctypes.c_size_t(value.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, size, self._stream)

    def download(self, value: Array, address: int) -> None:
        """Copy from the device into a contiguous array, which is filled after `synchronize`."""
        target, size = ctypes.c_void_p(value.ctypes.data), ctypes.c_size_t(value.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), size, self._stream)

    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", self._stream)

    def begin_capture(self) -> None:
        """From now on what this thread puts on the stream is recorded instead of run."""
        self._call("cuStreamBeginCapture_v2", self._stream, _CAPTURE_THIS_THREAD)

    def end_capture(self) -> int:
        """The handle of what was recorded, ready to launch."""
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        try:
            flags = ctypes.c_ulonglong(0)
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, flags)
        finally:
            self._call("cuGraphDestroy", graph)
        return int(ready.value or 0)

    def launch_graph(self, graph: int) -> None:
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), self._stream)

    def drop_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def close(self) -> None:
        """Give the stream and the context back. Calling it twice is allowed."""
        if self._stream:
            self._call("cuStreamDestroy_v2", self._stream)
            self._stream = ctypes.c_void_p()
            self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _call(self, function: str, *arguments: Any) -> None:
        _check(getattr(self._driver, function)(*arguments), function)


def _check(code: int, function: str) -> None:
    if code != 0:
        raise EnvironmentMissing(
            f"the CUDA driver refused {function}: error {code}",
            hint="nvidia-smi shows the state of the device; error 2 means it has no memory left",
        )


if __name__ == "__main__":
    json.dump(asdict(probe_here()), sys.stdout)
