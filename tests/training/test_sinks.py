"""Sinks: the right calls, the same run after a resume, and no harm from one that fails."""

from __future__ import annotations

import importlib.machinery
import json
import logging
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmprod.errors import EnvironmentMissing
from mmprod.training import sinks
from mmprod.training.metrics import MetricsLog, read_metrics
from mmprod.training.run import train
from mmprod.training.sinks import Background, check_sinks
from mmprod.training.telemetry import Monitoring
from tests.training.mini import mini_config

JOB = {"name": "x", "codec": {"channels": 8}}


def picture(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "p.png"
    Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).save(path)
    return path


def train_twice(folder: Path, *to: str) -> None:
    """Steps 1 to 3, then resumed after step 2."""
    about = Monitoring(to=to, name="run/codec", config=JOB)
    for first in (0, 2):
        with MetricsLog(folder, from_step=first, enabled=True, monitoring=about) as log:
            for step in range(first + 1, 4):
                log.write("log", step, {"loss": step / 10})
            log.picture(3, picture(folder))


def test_tensorboard_has_figures_and_pictures(tmp_path) -> None:
    train_twice(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("log/loss")] == [1, 2, 3]
    image = events.Images("samples")[-1]
    assert (image.width, image.height, image.step) == (6, 4, 3)


def test_none_of_them_may_be_wanted(tmp_path) -> None:
    train_twice(tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def fake(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> types.ModuleType:
    """A module that stands for a tracker's package."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    return module


class WandbRun:
    def __init__(self, name: str, calls: list) -> None:
        self.id, self._calls = name, calls

    def define_metric(self, name, step_metric=None) -> None:
        self._calls.append(("define", name, step_metric))

    def log(self, values) -> None:
        self._calls.append(("log", values))

    def finish(self) -> None:
        self._calls.append(("finish",))


def test_wandb_gets_every_line_and_a_resume_goes_on_in_the_same_run(tmp_path, monkeypatch) -> None:
    calls: list = []
    asked: list = []

    def init(**options):
        asked.append(options)
        return WandbRun(options["id"] or "new-id", calls)

    fake(
        monkeypatch, "wandb", init=init, Settings=lambda **s: s, Image=lambda path: ("image", path)
    )
    train_twice(tmp_path, "wandb")
    assert [options["id"] for options in asked] == [None, "new-id"]
    assert all(options["resume"] == "allow" for options in asked)
    assert asked[0]["config"] == JOB
    assert asked[0]["name"] == "run/codec"
    assert asked[0]["settings"]["console"] == "off"
    logged = [call[1] for call in calls if call[0] == "log"]
    assert logged[0] == {"log/loss": 0.1, "step": 1}
    assert [line["step"] for line in logged] == [1, 2, 3, 3, 3, 3]
    assert logged[3]["samples"] == ("image", str(tmp_path / "p.png"))
    assert calls.count(("finish",)) == 2


class MlflowClient:
    """Keeps everything; one for all uris, like a server."""

    calls: list = []  # noqa: RUF012 - one server

    def __init__(self, tracking_uri: str) -> None:
        self.calls.append(("uri", tracking_uri))

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return f"experiment {name}"

    def create_run(self, experiment, run_name):
        self.calls.append(("run", experiment, run_name))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="run-1"))

    def __getattr__(self, name):
        return lambda *args, **kw: self.calls.append((name, *args, *kw.values()))


def test_mlflow_gets_every_line_and_a_resume_goes_on_in_the_same_run(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(MlflowClient, "calls", [])
    fake(monkeypatch, "mlflow")
    fake(monkeypatch, "mlflow.tracking", MlflowClient=MlflowClient)
    fake(monkeypatch, "mlflow.entities", Metric=lambda *values: values)
    folder = tmp_path / "run" / "codec"
    train_twice(folder, "mlflow")
    calls = MlflowClient.calls
    assert calls.count(("uri", f"sqlite:///{tmp_path}/run/mlflow.db")) == 2
    assert calls.count(("run", "experiment mmprod", "run/codec")) == 1
    assert ("log_param", "run-1", "codec.channels", 8) in calls
    lines = [call for call in calls if call[0] == "log_batch"]
    assert [(call[1], call[2][0][0], call[2][0][3]) for call in lines] == [
        ("run-1", "log/loss", step) for step in (1, 2, 3, 3)
    ]
    assert ("log_artifact", "run-1", str(folder / "p.png"), "samples") in calls
    assert calls.count(("set_terminated", "run-1")) == 2


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_real_tracker_where_installed(name, tmp_path, monkeypatch) -> None:
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    train_twice(tmp_path / "run", name)
    known = json.loads((tmp_path / "run" / "trackers.json").read_text())
    assert list(known) == [name]
    if name == "mlflow":
        (figures,) = (tmp_path / "mlruns").rglob("metrics/log/loss")
        assert figures.parents[2].name == known[name]
        assert [line.split()[2] for line in figures.read_text().splitlines()] == list("1233")
    else:
        assert len(list((tmp_path / "run").glob(f"wandb/offline-run-*{known[name]}"))) == 2


def test_a_missing_package_is_an_error_before_anything_begins(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sinks, "_has", lambda name: False)
    for name in ("wandb", "mlflow"):
        with pytest.raises(EnvironmentMissing, match=name) as caught:
            train(mini_config(log={"to": (name,)}), tmp_path / "run")
        assert f"pip install mmprod[{name}]" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_tracker_without_key_or_place_is_an_error_before_anything_begins(monkeypatch) -> None:
    monkeypatch.setattr(sinks, "_has", lambda name: name != "sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(EnvironmentMissing, match="neither a server"):
        check_sinks(("mlflow",))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    check_sinks(("mlflow",))

    known = {"login": False}
    settings = types.SimpleNamespace(settings=types.SimpleNamespace(mode="online"))
    fake(monkeypatch, "wandb", setup=lambda: settings, login=lambda prompt: known["login"])
    with pytest.raises(EnvironmentMissing, match="no API key") as caught:
        check_sinks(("tensorboard", "wandb"))
    assert "WANDB_MODE=offline" in caught.value.hint
    settings.settings.mode = "offline"
    check_sinks(("wandb",))
    settings.settings.mode, known["login"] = "online", True
    check_sinks(("wandb",))


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mmprod"), "propagate", True)
    return lambda: [r.getMessage() for r in caplog.records if r.name == "mmprod.training.sinks"]


class Broken:
    """A sink whose network is down for its first lines."""

    def __init__(self, failures: int) -> None:
        self.failures, self.lines = failures, []

    def figures(self, kind, step, figures) -> None:
        if step <= self.failures:
            raise ConnectionError("no route to host")
        self.lines.append(step)

    def close(self) -> None:
        self.lines.append("closed")


def test_a_sink_that_fails_says_so_once_and_goes_on(warnings) -> None:
    sink = Broken(failures=3)
    background = Background("tracker", lambda: sink)
    for step in range(1, 6):
        background.figures("log", step, {"loss": 1.0})
    background.close()
    assert sink.lines == [4, 5, "closed"]
    assert len(warnings()) == 1
    assert "ConnectionError: no route to host" in warnings()[0]


def test_a_sink_that_keeps_failing_is_left_alone(warnings) -> None:
    sink = Broken(failures=1000)
    background = Background("tracker", lambda: sink)
    for step in range(1, 100):
        background.figures("log", step, {"loss": 1.0})
    background.close()
    background.figures("log", 2000, {"loss": 1.0})
    assert sink.lines == []
    assert len(warnings()) == 1


def test_a_sink_that_cannot_be_opened_ends_nothing(tmp_path, monkeypatch, warnings) -> None:
    def init(**options):
        raise OSError("no such host")

    fake(monkeypatch, "wandb", init=init, Settings=dict)
    train_twice(tmp_path, "wandb")
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    assert len(warnings()) == 2  # one in each of the two trainings
    assert "wandb is switched off: OSError: no such host" in warnings()[0]


def test_a_sink_that_hangs_does_not_hold_training_up(monkeypatch, warnings) -> None:
    monkeypatch.setattr(sinks, "CLOSING_S", 0.1)
    monkeypatch.setattr(sinks, "WAITING", 3)
    go = threading.Event()
    background = Background("tracker", lambda: go.wait(20))
    for step in range(10):
        background.figures("log", step, {"loss": 1.0})
    background.close()
    assert len(warnings()) == 1
    assert "too slow" in warnings()[0]
    go.set()


def test_where_figures_go_may_change_while_a_run_goes_on(tmp_path) -> None:
    train(mini_config(log={"to": ()}), tmp_path / "run", stages=("codec",))
    result = train(mini_config(log={"peak_tflops": 2.0}), tmp_path / "run", stages=("codec",))
    assert result.stages["codec"].skipped
