"""Looking for a device without being hurt by what is or is not there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mmprod.errors import EnvironmentMissing
from mmprod.runners import cuda


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libno-such-driver.so.1")
    probe = cuda.probe_here()
    assert not probe.found
    assert probe.reason == "no NVIDIA driver: libno-such-driver.so.1 was not found"


def test_the_subprocess_finds_what_this_process_finds() -> None:
    assert cuda.find_device() == cuda.probe_here()


def test_a_driver_that_crashes_is_no_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho broken driver >&2\nkill -SEGV $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    probe = cuda.find_device.__wrapped__()
    assert probe == cuda.Probe(reason="asking the driver failed (exit -11): broken driver")


def test_the_child_finds_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    first, second = cuda.child_environment()["PYTHONPATH"].split(os.pathsep)
    assert (Path(first) / "mmprod" / "runners" / "cuda.py").is_file()
    assert second == "/elsewhere"


def test_what_the_driver_refuses_is_an_error_of_the_environment() -> None:
    cuda._check(0, "cuMemAlloc_v2")
    with pytest.raises(EnvironmentMissing, match="cuMemAlloc_v2: error 2"):
        cuda._check(2, "cuMemAlloc_v2")


@pytest.mark.gpu
def test_memory_goes_to_the_device_and_back() -> None:
    import numpy as np

    memory = cuda.DeviceMemory()
    try:
        sent, back = np.arange(1000, dtype=np.int32), np.zeros(1000, np.int32)
        address = memory.allocate(sent.nbytes)
        memory.upload(address, sent)
        memory.download(back, address)
        memory.synchronize()
        memory.free(address)
        assert (back == sent).all()
    finally:
        memory.close()
        memory.close()
