"""Ranks that meet, and ranks that do not. Real processes; they only meet."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmprod.errors import ConfigError
from mmprod.training.environment import TIMEOUT
from mmprod.training.rendezvous import timeout_s

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import logging, sys
from mmprod.errors import MmprodError
from mmprod.training.distributed import add_over_ranks, join, leave
from mmprod.training.rendezvous import withdraw

logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
if sys.argv[1:] == ["withdraw"]:
    withdraw(4, "a shard is damaged")
    sys.exit(4)
try:
    world = join(group=True)
    print(add_over_ranks(world, [float(world.rank + 1)]))
except MmprodError as error:
    print(error.message, file=sys.stderr)
    leave(error.exit_code)
leave(0)
"""


def meeting(size, *ranks, timeout_s=20):
    """Start these ranks of `size` ("1 withdraw": with that word) -> [(code, stdout, stderr)]."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    shared |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", TIMEOUT: str(timeout_s)}
    started = []
    for rank in ranks:
        number, *words = str(rank).split()
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *words],
                env=os.environ | shared | {"RANK": number, "LOCAL_RANK": number},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=60) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [(p.returncode, *words) for p, words in zip(started, said, strict=True)]


def test_ranks_that_meet_say_where_and_exchange():
    (first, total, words), (second, *_) = meeting(2, 0, 1)
    assert (first, second) == (0, 0), words
    assert total == "[3.0]\n"
    assert "2 ranks on 1 node (environment), gloo over lo 127.0.0.1 (one node)" in words
    assert "rendezvous localhost:" in words


def test_the_missing_rank_is_named_by_all():
    begun = time.monotonic()
    for code, _, words in meeting(3, 0, 2, timeout_s=3):
        assert code == 3
        assert "rank 1 of 3 did not come to localhost:" in words
        assert f"there are ranks 0, 2 on {socket.gethostname()}" in words
    assert time.monotonic() - begun < 30


@pytest.mark.slow
def test_rank_0_that_never_comes_is_named():
    ((code, _, words),) = meeting(2, 1, timeout_s=3)
    assert code == 3
    assert "did not reach rank 0 at localhost:" in words
    assert "within 3 s" in words


@pytest.mark.slow
def test_two_processes_of_one_rank_are_refused():
    ended = meeting(2, 0, 0, timeout_s=5)
    assert {code for code, *_ in ended} <= {2, 3}
    assert any(
        "rank 0 cannot listen on" in words or "two processes" in words for *_, words in ended
    )
    ended = meeting(3, 0, 1, 1, timeout_s=5)
    assert any(code == 2 and "two processes are rank 1 of 3" in words for code, _, words in ended)


@pytest.mark.slow
def test_a_rank_that_fails_first_tells_those_that_wait():
    (waiting, _, words), (failed, *_) = meeting(2, 0, "1 withdraw")
    assert (waiting, failed) == (4, 4)
    assert "before the ranks had met, rank 1 on" in words
    assert "left with exit code 4: a shard is damaged" in words


@pytest.mark.parametrize("text", ["0", "-3", "soon"])
def test_a_time_out_is_a_number_of_seconds(monkeypatch, text):
    monkeypatch.setenv(TIMEOUT, text)
    with pytest.raises(ConfigError, match=TIMEOUT):
        timeout_s()
