"""A disk of one's own that can be filled and write-protected, and an interrupted run on it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmprod.errors import Preempted

JOB = """
name = "faulty"
[data]
count = 40
image_size = 16
vocabulary = 300
text_length = 96
[codec]
patch = 2
channels = 8
multipliers = [1, 2]
codebook_size = 16
code_dim = 4
[codec_train]
steps = 6
batch = 4
warmup = 1
log_every = 1
eval_every = 2
save_every = 2
precision = "fp32"
"""
STEPS = 6


class Disk:
    """A mounted tmpfs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, left: int) -> None:
        """Take all of the space but `left` bytes, in whole pages."""
        room = os.statvfs(self.path)
        free = room.f_bavail * room.f_frsize
        (self.path / "filler").write_bytes(bytes(max(0, free - left) // 4096 * 4096))

    def free(self) -> None:
        (self.path / "filler").unlink()

    def protect(self, on: bool) -> None:
        kind = "ro" if on else "rw"
        subprocess.run(["mount", "-o", f"remount,{kind}", self.path], check=True)


@contextmanager
def mounted(path: Path, megabytes: int = 12) -> Iterator[Disk]:
    """A small disk at `path`; the test is skipped where it cannot be had."""
    if os.geteuid():
        pytest.skip("mounting a small disk takes root")
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk could be mounted: {done.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def interrupt(config_path: Path, run: Path, after: int = 4) -> None:
    """Train the codec until `after` steps are saved, as a scheduler that stops the job."""
    from mmprod.config.load import load_config
    from mmprod.training.run import train

    def stop(event):
        if event.kind == "log" and event.step == after - 1:
            signal.raise_signal(signal.SIGUSR1)

    with pytest.raises(Preempted):
        train(load_config(str(config_path)), run, stages=("codec",), on_event=stop)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
