"""`mmprod train --chaos`: the plan, what it refuses, the comparison, and a job that is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmprod.config.load import to_toml
from mmprod.errors import ConfigError
from mmprod.manifest import write_json
from mmprod.training.chaos import Chaos, ChaosPlan, chaos_folder, kill_records, open_chaos
from mmprod.training.compare import compare_runs
from mmprod.training.distributed import World
from mmprod.training.run import train
from tests.training.mini import mini_config

ROOT = Path(__file__).resolve().parents[2]
ALONE = World(0, 1, torch.device("cpu"))


def test_a_plan_is_read_and_nonsense_refused():
    assert ChaosPlan.parse("kills=20,seed=1") == ChaosPlan(20, 1)
    assert ChaosPlan.parse("kills=3") == ChaosPlan(3, 0)
    for text in ("", "20", "kills=0", "kills=-1", "seed=1", "kills=2,kills=3", "kills=2,x=1"):
        with pytest.raises(ConfigError) as caught:
            ChaosPlan.parse(text)
        assert "--chaos kills=" in caught.value.hint


def test_a_plan_is_a_function_of_its_seed_and_mixes_what_it_should():
    plan = ChaosPlan(60, 4)
    kills = [plan.kill(number, 8) for number in range(60)]
    assert kills == [ChaosPlan(60, 4).kill(number, 8) for number in range(60)]
    assert kills != [ChaosPlan(60, 5).kill(number, 8) for number in range(60)]
    assert Counter(kill.place for kill in kills)["save"] == 30
    assert {kill.place for kill in kills} == {"save", "step", "evaluation", "start"}
    pairs = Counter((kill.place == "save", kill.signal) for kill in kills)
    assert set(pairs.values()) == {15}
    assert {kill.rank for kill in kills} == set(range(8))
    assert [kill.due for kill in kills] == sorted(kill.due for kill in kills)


def test_a_run_that_was_begun_without_chaos_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    plan, config = ChaosPlan(2), mini_config()
    with pytest.raises(ConfigError, match="not begun with --chaos"):
        open_chaos(plan, config, tmp_path / "run", ("codec",), ALONE)
    assert open_chaos(None, config, tmp_path / "run", ("codec",), ALONE) is None
    open_chaos(plan, config, tmp_path / "new", ("codec",), ALONE)
    with pytest.raises(ConfigError, match="another plan"):
        open_chaos(ChaosPlan(3), config, tmp_path / "new", ("codec",), ALONE)


def test_a_signal_is_on_record_before_it_goes_out(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(os, "kill", lambda *what: sent.append((what, len(kill_records(tmp_path)))))
    plan = ChaosPlan(1)
    chaos = Chaos(plan, tmp_path, ALONE, {"codec": 10})
    chaos.begin_stage("codec")
    for step in range(10):
        chaos.enter("save", step)
        chaos.leave("save")
    assert len(sent) == 1 and sent[0][1] == 1
    (record,) = kill_records(tmp_path)
    assert (record["phase"], record["signal"], record["pid"]) == ("save", "SIGKILL", os.getpid())
    again = Chaos(plan, tmp_path, ALONE, {"codec": 10})
    again.enter("save", 9)
    again.leave("save")
    assert len(sent) == 1, "the plan is done"


def test_kills_come_when_they_are_due(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "kill", lambda *what: None)
    chaos = Chaos(ChaosPlan(2), tmp_path, ALONE, {"codec": 10, "fusion": 10})
    chaos.begin_stage("codec")
    for step in range(6):
        chaos.enter("save", step)
        chaos.leave("save")
        assert len(kill_records(tmp_path)) == (step >= 5), "kill 0 of 2 is due after a quarter"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare") / "run"
    train(mini_config(), root, stages=("codec",))
    return root


def test_equal_runs_are_equal_and_one_bit_is_found(finished, tmp_path):
    other = shutil.copytree(finished, tmp_path / "other")
    matches = compare_runs(finished, other, ("codec",))
    assert all(match.equal for match in matches) and len(matches) == 4
    weights = load_file(other / "codec" / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(torch.uint8).view(-1)[0] ^= 1
    save_file(weights, other / "codec" / "model.safetensors")
    lines = (other / "codec" / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    changed = {**first, "loss": first["loss"] + 1e-12, "seconds": first["seconds"] + 5}
    (other / "codec" / "metrics.jsonl").write_text("\n".join([json.dumps(changed), *lines[1:], ""]))
    unlike = [match for match in compare_runs(finished, other, ("codec",)) if not match.equal]
    assert [match.differs for match in unlike] == [name, "log 1 loss"]


def start(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mmprod", "train", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=280,
    )


@pytest.mark.slow
def test_a_killed_job_ends_like_one_that_was_left_alone(tmp_path):
    """Two ranks, ZeRO 1, saves in the background. The bar's 60 kills: docs/faults.md."""
    steps = {"steps": 12, "batch": 16, "log_every": 2, "eval_every": 4, "async_save": True}
    (tmp_path / "job.toml").write_text(to_toml(mini_config(codec_train=steps)))
    words = ["-c", "job.toml", "--model", "codec", "--out", "run", "--nproc", "2", "--json"]
    done = start(tmp_path, *words, "--chaos", "kills=4,seed=2")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["verdict"] == "pass" and report["faults"] == []
    assert report["kills"]["sent"] == 4 and report["kills"]["save"] == 2
    assert all(match["equal"] for match in report["matches"])
    folder = chaos_folder(tmp_path / "run")
    lives = [json.loads(line) for line in (folder / "lives.jsonl").read_text().splitlines()]
    assert [life["kills"] for life in lives] == [[0], [1], [2], [3]]
    assert json.loads((folder / "report.json").read_text()) == report


def test_chaos_does_not_go_with_what_it_cannot_drive(tmp_path):
    write_json(tmp_path / "x.json", {})
    done = start(tmp_path, "--chaos", "kills=2", "--resume", "never")
    assert done.returncode == 2 and "--resume auto" in done.stderr
