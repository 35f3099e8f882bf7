"""Starting ranks: which combinations of options name a job, and what torchrun is told."""

from __future__ import annotations

import signal
from dataclasses import dataclass

import pytest

from mmprod.cli.launch import Start, _code_of, _torchrun, is_rank, launch
from mmprod.errors import ConfigError

from .conftest import Mmprod


def test_one_process_starts_no_ranks() -> None:
    assert not Start().wanted
    assert Start(nproc=2).size == 2
    assert Start(nproc=4, nnodes=2, node_rank=1, master="a:1").size == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nnodes": 2}, "needs --master ADDR:PORT or --rdzv ADDR:PORT"),
        ({"nnodes": 2, "master": "a:1", "rdzv": "a:1"}, "one of them"),
        ({"nnodes": 2, "master": "a:1"}, "--master needs --node-rank"),
        ({"nnodes": 2, "master": "a:1", "node_rank": 2}, "--node-rank 2 of 2 nodes"),
        ({"nnodes": 2, "rdzv": "a:1", "node_rank": 0}, "deals out ranks itself"),
        ({"nnodes": 2, "rdzv": "node0"}, "--rdzv 'node0' is not ADDR:PORT"),
        ({"nnodes": 2, "master": ":1", "node_rank": 0}, "is not ADDR:PORT"),
        ({"nnodes": 2, "master": "a:70000", "node_rank": 0}, "is not ADDR:PORT"),
        ({"nproc": 2, "master": "a:1"}, "--master is for several nodes"),
        ({"node_rank": 0}, "--node-rank is for several nodes"),
    ],
)
def test_half_a_job_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Start(**options)  # type: ignore[arg-type]
    assert caught.value.hint


def test_what_torchrun_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPROD_RENDEZVOUS_TIMEOUT", "7")
    assert _torchrun(Start(nproc=2)) == ["--standalone", "--nproc-per-node=2"]
    static = _torchrun(Start(nproc=2, nnodes=3, node_rank=1, master="[::1]:29500"))
    assert "--master-addr=::1" in static
    assert "--node-rank=1" in static
    assert "--rdzv-conf=timeout=7" in static
    here = _torchrun(Start(nnodes=2, rdzv="127.0.0.1:29500"))
    assert "--rdzv-conf=is_host=1,join_timeout=7,read_timeout=7" in here
    assert not any(word.startswith("--local-addr") for word in here), "loopback leads nowhere"
    away = _torchrun(Start(nnodes=2, rdzv="203.0.113.9:29500"))
    assert any("is_host=0" in word for word in away)


@dataclass
class Failure:
    exitcode: int
    timestamp: int


def test_the_rank_that_was_killed_is_the_cause_of_the_others_end() -> None:
    killed = Failure(-signal.SIGKILL, 2)
    assert _code_of({0: Failure(3, 1), 1: killed}) == 137
    assert _code_of({0: Failure(7, 2), 1: Failure(3, 5)}) == 7


def test_a_rank_starts_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_rank()
    with pytest.raises(ConfigError, match="has started this process as a rank"):
        launch(Start(nproc=2), [])
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert not is_rank()


def test_half_an_environment_ends_with_2(
    mmprod: Mmprod, job: object, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = mmprod("train", "--config", job, "--out", f"{tmp_path}/run")
    assert result.code == 2
    assert "RANK='x' is not a number" in result.err
    assert "Traceback" not in result.err


def test_the_option_of_the_deepspeed_launcher_is_taken(mmprod: Mmprod) -> None:
    assert mmprod("--local_rank=0", "config", "schema").code == 0
