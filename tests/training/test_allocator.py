"""Freed memory is kept where nobody has said otherwise; counted in page faults of a process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

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
PAGES = 5 * 5 * 10_000_000 * 4 // os.sysconf("SC_PAGE_SIZE")
"""written by the five steps"""


def faults(call: str, **variables: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", STEPS.format(call=call)],
        env={**os.environ, **variables},
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
    assert returned > 0.9 * PAGES
    assert kept < 0.1 * PAGES


@glibc
def test_what_the_environment_says_stands() -> None:
    assert faults("keep_freed_memory()", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmprod.training.allocator import keep_freed_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
