"""What ranks tell each other first, on ranks that are played by one process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import mmprod
from mmprod.config.schema import Config
from mmprod.errors import ConfigError, EnvironmentMissing
from mmprod.training import handshake
from mmprod.training.distributed import World

ORDER = {"--resume": "auto"}


def meet(monkeypatch, papers, settings):
    """`papers`, `settings`: what the two exchanges give."""
    answers = iter([papers, settings])
    monkeypatch.setattr(handshake, "gather", lambda world, value: next(answers))
    return World(0, 2, torch.device("cpu"))


def paper(host="node0", asked="a", failure=None, **runs):
    return handshake._Paper(host, failure, asked, tuple(runs.items()))


def test_a_process_alone_only_checks_itself():
    world = World(0, 1, torch.device("cpu"))
    assert handshake.shake_hands(world, Config(), ORDER, lambda: {"bf16": {}}) == {"bf16": {}}
    with pytest.raises(ConfigError, match="no good"):
        handshake.shake_hands(world, Config(), ORDER, _fails)


def _fails():
    raise ConfigError("no good", hint="do better")


def test_equal_ranks_go_on(monkeypatch):
    world = meet(monkeypatch, [paper(source="x"), paper("node1", source="x")], [])
    assert handshake.shake_hands(world, Config(), ORDER, lambda: None) is None


def test_one_rank_that_fails_is_named_on_all(monkeypatch):
    failed = paper("node1", failure=ConfigError("ds.json:2: unknown key", hint="mend it"))
    world = meet(monkeypatch, [paper(), failed], [])
    with pytest.raises(ConfigError) as caught:
        handshake.shake_hands(world, Config(), ORDER, lambda: None)
    assert caught.value.message == "rank 1 on node1: ds.json:2: unknown key"
    assert caught.value.hint == "mend it"


def test_a_failure_of_all_ranks_is_nobodys_in_particular(monkeypatch):
    error = ConfigError("unknown key", hint="")
    world = meet(monkeypatch, [paper(failure=error), paper("node1", failure=error)], [])
    with pytest.raises(ConfigError, match=r"^unknown key$"):
        handshake.shake_hands(world, Config(), ORDER, _fails)


def test_other_code_is_an_environment_that_lacks_something(monkeypatch):
    world = meet(monkeypatch, [paper(torch="2.13"), paper("node1", torch="2.12")], [])
    with pytest.raises(EnvironmentMissing) as caught:
        handshake.shake_hands(world, Config(), ORDER, lambda: None)
    assert "rank 1 on node1" in caught.value.message
    assert "torch 2.12 instead of 2.13" in caught.value.message


def test_other_settings_are_named_key_by_key(monkeypatch):
    ours = {f"key{i}": "1" for i in range(9)}
    theirs = ours | {f"key{i}": "2" for i in range(7)} | {"more": "3"}
    world = meet(monkeypatch, [paper(asked="a"), paper("node1", asked="b")], [ours, theirs])
    with pytest.raises(ConfigError) as caught:
        handshake.shake_hands(world, Config(), ORDER, lambda: None)
    assert "key0 2 (rank 0: 1)" in caught.value.message and "3 more" in caught.value.message
    assert "key8" not in caught.value.message


def test_settings_cover_configuration_command_and_deepspeed_file():
    raw = {"zero_optimization": {"stage": 1}, "bf16": None}
    found = handshake._settings(Config(), ORDER, raw)
    assert found["codec_train.batch"] == "64" and found["--resume"] == "auto"
    assert found["ds.json zero_optimization.stage"] == "1" and "ds.json bf16" not in found


def test_any_change_of_the_source_is_seen(tmp_path):
    root = Path(mmprod.__file__).parent
    copy = tmp_path / "mmprod"
    shutil.copytree(root / "config", copy, ignore=shutil.ignore_patterns("__pycache__"))
    first = handshake.source_digest(copy)
    assert first == handshake.source_digest(root / "config")
    (copy / "section.py").rename(copy / "part.py")
    second = handshake.source_digest(copy)
    with (copy / "part.py").open("a") as stream:
        stream.write("\n")
    assert len({first, second, handshake.source_digest(copy)}) == 3
