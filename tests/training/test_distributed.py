"""Finding one's rank, and errors that reach every rank."""

from __future__ import annotations

import pickle

import pytest
import torch

from mmprod.errors import ConfigError
from mmprod.training.distributed import World, add_over_ranks, gather, join, leave, only_main

ALONE = World(0, 1, torch.device("cpu"))


def test_without_a_launcher_there_is_one_rank_and_no_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    world = join(group=False)
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert not torch.distributed.is_initialized()


def test_several_processes_need_deepspeed(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ConfigError) as caught:
        join(group=False)
    assert "--deepspeed" in caught.value.hint


def test_a_broken_launcher_variable_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE='two'"):
        join(group=False)


def test_exchanges_of_one_rank_are_the_identity():
    assert add_over_ranks(ALONE, [1.5, 2.0]) == [1.5, 2.0]
    assert gather(ALONE, "x") == ["x"]
    assert only_main(ALONE, lambda: 3) == 3


def test_errors_keep_their_hint_on_the_way_to_other_ranks():
    error = pickle.loads(pickle.dumps(ConfigError("what", hint="do this")))
    assert (error.message, error.hint) == ("what", "do this")


def test_leaving_alone_is_an_ordinary_exit():
    with pytest.raises(SystemExit) as caught:
        leave(7)
    assert caught.value.code == 7
