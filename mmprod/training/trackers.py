"""TensorBoard, Weights & Biases and MLflow behind `sinks.Sink`; the only file that imports them.

A tracker's run id is kept in the stage folder (trackers.json), so that a resumed training goes on
in the same run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmprod.manifest import read_json, write_json
from mmprod.training.telemetry import Monitoring

IDS = "trackers.json"
PROJECT = "mmprod"
"""project of Weights & Biases (WANDB_PROJECT counts more), experiment of MLflow
(MLFLOW_EXPERIMENT_NAME does)
"""


class TensorBoard:
    """Event files in <stage>/tensorboard."""

    def __init__(self, folder: Path, from_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def figures(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def picture(self, step: int, path: Path) -> None:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases. WANDB_MODE=offline keeps it in <stage>/wandb."""

    def __init__(self, folder: Path, monitoring: Monitoring) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=monitoring.name,
            id=run_id(folder, "wandb") or None,
            resume="allow",
            dir=str(folder),
            config=dict(monitoring.config),
            # Training's own console and signals are not for wandb to take.
            settings=wandb.Settings(console="off", silent=True, disable_git=True),
        )
        keep_id(folder, "wandb", self._run.id)
        # Not wandb's own step, which must never go back: a resumed training repeats some.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def figures(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        named = {f"{kind}/{name}": value for name, value in figures.items()}
        self._run.log({**named, "step": step})

    def picture(self, step: int, path: Path) -> None:
        self._run.log({"samples": self._wandb.Image(str(path)), "step": step})

    def close(self) -> None:
        self._run.finish()


def wandb_is_ready() -> bool:
    """Whether wandb keeps its runs here, or has a key for its server. Never prompts."""
    import wandb

    mode = str(wandb.setup().settings.mode)
    return mode in ("offline", "disabled") or bool(wandb.login(prompt=False))


class Mlflow:
    """A run of MLflow: on the server of MLFLOW_TRACKING_URI, else in <run>/mlflow.db."""

    def __init__(self, folder: Path, monitoring: Monitoring) -> None:
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        uri = os.environ.get("MLFLOW_TRACKING_URI") or local_uri(folder)
        self._client = MlflowClient(tracking_uri=uri)
        self._id = run_id(folder, "mlflow") or self._begin(folder, monitoring)

    def _begin(self, folder: Path, monitoring: Monitoring) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        run = self._client.create_run(experiment, run_name=monitoring.name)
        for section, values in monitoring.config.items():
            fields = values if isinstance(values, Mapping) else {"": values}
            for key, value in fields.items():
                shown = f"{section}.{key}" if key else section
                self._client.log_param(run.info.run_id, shown, value)
        keep_id(folder, "mlflow", run.info.run_id)
        return str(run.info.run_id)

    def figures(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(f"{kind}/{n}", v, now, step) for n, v in figures.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def picture(self, step: int, path: Path) -> None:
        self._client.log_artifact(self._id, str(path), "samples")

    def close(self) -> None:
        self._client.set_terminated(self._id)


def local_uri(folder: Path) -> str:
    """Where MLflow writes without a server: into the run, whose stages share it."""
    return f"sqlite:///{folder.resolve().parent / 'mlflow.db'}"


def run_id(folder: Path, tracker: str) -> str:
    """The id that an earlier part of this training had, or empty."""
    return str(_ids(folder).get(tracker, ""))


def keep_id(folder: Path, tracker: str, value: str) -> None:
    write_json(folder / IDS, {**_ids(folder), tracker: value})


def _ids(folder: Path) -> dict[str, Any]:
    path = folder / IDS
    if not path.is_file():
        return {}
    found = read_json(path, hint="remove it: trackers then begin a new run")
    return dict(found) if isinstance(found, dict) else {}
