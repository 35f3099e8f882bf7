"""Freed memory is kept where nobody has said otherwise; counted in page faults of a process."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest
from pytest import LogCaptureFixture

from mmprod.training import allocator

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

STEPS = """
import resource, torch
from mmprod.training.allocator import keep_freed_memory
took = {call}
def step():
    kept = [torch.ones(10_000_000) for _ in range(5)]
for _ in range(4):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(took, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
FREE = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("MALLOC_", "GLIBC_", "THP_"))
}
"""no word on how to allocate"""


def faults(call: str, **variables: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", STEPS.format(call=call)],
        env=FREE | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    took, count = done.stdout.split()
    return took, int(count)


@glibc
def test_pages_are_mapped_once() -> None:
    took, kept = faults("keep_freed_memory()")
    _, returned = faults("False")
    assert took == "True"
    assert kept < 0.1 * returned


@glibc
def test_what_the_environment_says_stands() -> None:
    assert faults("keep_freed_memory()", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"


class OfGlibc:
    """mallopt, which takes blocks of up to `most` bytes."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.calls: list[tuple[int, int, int]] = []

    def mallopt(self, parameter: int, value: int) -> int:
        took = int(parameter == allocator.TRIM_THRESHOLD or value <= self.most)
        self.calls.append((parameter, value, took))
        return took


def asked(monkeypatch: pytest.MonkeyPatch, most: int) -> tuple[bool, list[tuple[int, int, int]]]:
    library = OfGlibc(most)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    for name in allocator.USERS_OWN:
        monkeypatch.delenv(name, raising=False)
    return allocator.keep_freed_memory(), library.calls


def test_an_older_glibc_keeps_smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    size, trim = allocator.MMAP_THRESHOLD, allocator.TRIM_THRESHOLD
    took, calls = asked(monkeypatch, 32 << 20)
    assert took
    assert calls == [(size, 1 << 30, 0), (size, 32 << 20, 1), (trim, allocator.NEVER, 1)]


def test_nothing_is_half_set(monkeypatch: pytest.MonkeyPatch, caplog: LogCaptureFixture) -> None:
    took, calls = asked(monkeypatch, 0)
    assert not took
    assert allocator.TRIM_THRESHOLD not in [parameter for parameter, _, _ in calls]
    assert "refuses to keep" in caplog.text


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not allocator.keep_freed_memory()
