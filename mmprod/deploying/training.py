"""The training that every cluster starts: `mmprod train` with the arguments its options mean."""

from __future__ import annotations

import posixpath

from mmprod.config.load import load_config
from mmprod.deploying.options import Options, Training

DATA = "data"
"""Where the pictures lie unless it was said otherwise."""


def train_arguments(options: Options, runs: str, root: str) -> list[str]:
    """What follows `mmprod` on every node. runs: folder of runs; root: where relative data lie."""
    training = options.training
    return [
        *("train", "--config", training.config, *_data(training, root)),
        *("--deepspeed", training.deepspeed, "--out", f"{runs}/{options.name}"),
    ]


def _data(training: Training, root: str) -> list[str]:
    """A configuration that takes pictures from a folder and names none must be told which."""
    data = load_config(training.config).data
    if not training.data and (data.source != "folder" or data.path):
        return []
    return ["-o", f"data.path={posixpath.join(root, training.data or DATA)}"]
