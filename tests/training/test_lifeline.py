"""What ranks hear of each other's end. The processes here only hold a lifeline; none trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmprod.training.environment import EXIT_FOLDER
from mmprod.training.lifeline import Loss

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import logging, sys, time
from mmprod.training import lifeline
logging.basicConfig(stream=sys.stderr, format="%(message)s")
rank, port, end = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
lifeline.GRACE_DEAD_S, lifeline.GRACE_LEFT_S = 0.2, 0.3
if rank == 0:
    line = lifeline.Hub("host0", "127.0.0.1", 3, "secret")
    print(line.port, flush=True)
else:
    line = lifeline.Strand(rank, f"host{rank}", ("127.0.0.1", port), "host0", "secret")
    print("there", flush=True)
lifeline.hold(line)
sys.stdin.readline()
if end == "error":
    raise ValueError
if end.isdigit():
    lifeline.say_goodbye(int(end), "why")
    sys.exit(int(end))
"""


class Rank:
    """One process with a lifeline, which ends in the way it was told when `go` is called."""

    def __init__(self, rank: int, port: int, end: str, folder: Path) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "RANK": str(rank),
            "LOCAL_RANK": "0",
            EXIT_FOLDER: str(folder),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(port), end],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.first = self.process.stdout.readline().strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        try:
            code = self.process.wait(20)  # its stdin stays open: at the end of it, it would go
        finally:
            self.process.kill()
            _, words = self.process.communicate()
        return code, words


def job(folder: Path, ends: tuple[str, str, str]) -> list[Rank]:
    hub = Rank(0, 0, ends[0], folder)
    ranks = [Rank(rank, int(hub.first), ends[rank], folder) for rank in (1, 2)]
    assert [rank.first for rank in ranks] == ["there", "there"]
    return [hub, *ranks]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_all_with_3(tmp_path, victim):
    ranks = job(tmp_path, ("wait", "wait", "wait"))
    begun = time.monotonic()
    ranks[victim].process.kill()
    ended = [rank.end() for rank in ranks]
    assert time.monotonic() - begun < 5
    codes = [code for code, _ in ended]
    assert codes.pop(victim) == -signal.SIGKILL
    assert codes == [3, 3]
    words = "".join(words for _, words in ended)
    assert f"rank {victim} on host{victim} died" in words
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert left == {f"rank-{r}": "3" for r in (0, 1, 2) if r != victim}


@pytest.mark.parametrize("leaver", [0, 2])
def test_all_end_with_the_code_of_the_one_that_left(tmp_path, leaver):
    ends = ["wait", "wait", "wait"]
    ends[leaver] = "7"
    ranks = job(tmp_path, tuple(ends))
    ranks[leaver].go()
    ended = [rank.end() for rank in ranks]
    assert [code for code, _ in ended] == [7, 7, 7]
    if leaver:
        assert f"rank {leaver} on host{leaver} left with exit code 7: why" in ended[0][1]


def test_leaving_with_0_disturbs_nobody(tmp_path):
    ranks = job(tmp_path, ("0", "0", "0"))
    for rank in (ranks[1], ranks[0]):
        rank.go()
        assert rank.end() == (0, "")
    time.sleep(0.5)
    assert ranks[2].process.poll() is None
    ranks[2].go()
    assert ranks[2].end() == (0, "")


def test_an_end_without_goodbye_is_announced(tmp_path):
    """A program of one's own that returns, or ends in an exception, has not died."""
    ranks = job(tmp_path, ("wait", "wait", "error"))
    ranks[1].go()
    assert ranks[1].end()[0] == 0
    ranks[2].go()
    assert ranks[2].end()[0] == 1
    code, words = ranks[0].end()
    assert code == 1
    assert "rank 2 on host2 left with exit code 1" in words


STRANGER = """
import socket, sys
from mmprod.training.lifeline import Hub, Strand

hub = Hub("host0", "127.0.0.1", 2, "secret")
words = [b"GET / HTTP/1.1\\r\\n", b'{"token": "guess", "rank": 1, "host": "h"}\\n']
token = b'{"token": "secret", "rank": '
words += [b'{"token": "\\u00e9"}\\n', b'{"token": "\\ud800"}\\n', token + b'"x", "host": "h"}\\n']
words += [token + b'1}\\n', b'{}\\n']
for word in (*words, b"[]\\n", b"5\\n", b"x" * 2_000_000):
    with socket.create_connection(("127.0.0.1", hub.port)) as stranger:
        stranger.settimeout(5)
        stranger.sendall(word)
        try:
            assert stranger.recv(1) == b""
        except ConnectionResetError:
            pass
strand = Strand(1, "host1", ("127.0.0.1", hub.port), "host0", "secret")
strand.leave(0)
assert hub.loss(0.3) is None
strand = Strand(1, "host1", ("127.0.0.1", hub.port), "host0", "secret")
strand.leave(7, "why")
assert hub.loss(5).said == "why"
"""


def test_a_stranger_at_the_port_is_sent_away():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_a_loss_reads_as_a_sentence():
    assert "rank 1 on a died" in str(Loss(1, "a", None))
    assert str(Loss(1, "a", 7, "NaN")) == "rank 1 on a left with exit code 7: NaN"
    assert json.loads(json.dumps(Loss(1, "a", 7).__dict__))["code"] == 7
