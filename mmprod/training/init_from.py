"""Weights to start a stage from (`init_from` of a training section), tensor by tensor.

A run, a stage folder or a safetensors file is given; what fits by name and shape is taken. Every
tensor, ours or theirs, gets a verdict with its reason: in the log, in RUN/<stage>/init.json, and
on the console.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmprod.checkpoint import layout, list_steps
from mmprod.config.parts import part_of
from mmprod.config.schema import Config
from mmprod.errors import ConfigError, IntegrityError
from mmprod.manifest import read_json, sha256_file
from mmprod.training.codebook_kind import other_codebook, read_codebook
from mmprod.training.id_meaning import other_ids
from mmprod.training.records import read_stage
from mmprod.training.task import Task
from mmprod.training.transfer import Transfer, Verdict

logger = logging.getLogger(__name__)

SHOWN = 6
"""tensors that a line of the log names; init.json has them all"""
_COPY = "give weights of a finished training, from a good copy"


def start_from(
    task: Task, path: Path, frozen: Collection[str] = (), tokenizer: str = ""
) -> Transfer:
    """Load the tensors of `path` that match in name and shape; say what became of each.

    Rows of a fusion model that belong to other ids than ours are left (`tokenizer`: the SHA-256 of
    ours; see id_meaning.py).

    A codebook that the task learns (codes, averages, counters, SimVQ's map) describes one state and
    is taken whole from one of the same kind, or not at all; without one to learn, buffers come from
    the task's own inputs and are left as they are. `frozen`: parts that must come whole from
    `path`. Raises ConfigError when no matrix or kernel outside the codebook fits, or a frozen part
    stays fresh; IntegrityError when the file cannot be read or trusted.
    """
    source = find_weights(path, task.name)
    given = _read(source)
    model = task.core(task.model)
    other = other_codebook(task.codebook, read_codebook(source)) if task.learns_buffers else ""
    own = model.state_dict()
    strange = other_ids(source, own, given, tokenizer)
    verdicts = _judge(task, model, given, other, strange)
    taken = {v.name: given[v.name] for v in verdicts if v.verdict == "loaded"}
    parameters = {name for name, _ in model.named_parameters()}
    outside = parameters - _codebook_names(task, model)
    if not any(own[name].ndim >= 2 for name in taken.keys() & outside):
        raise ConfigError(
            f"init_from: no tensor of {source} fits this model: {_example(verdicts)}",
            hint="give weights of the same model (the same width), or leave init_from empty",
        )
    learned = own.keys() if task.learns_buffers else parameters
    _check_frozen(task.name, [v for v in verdicts if v.name in learned and v.part in frozen])
    for name, tensor in taken.items():  # in place, which a sharded build can follow
        own[name].copy_(tensor)
    return Transfer(task.name, str(source), sha256_file(source), tuple(verdicts))


def record(transfer: Transfer, folder: Path) -> None:
    """Tell the log (row by row only at DEBUG), and write init.json into the stage folder."""
    whole = transfer.count("loaded") == len(transfer.tensors)
    logger.log(logging.INFO if whole else logging.WARNING, "init_from: %s", transfer.summary())
    for row in transfer.rows():
        if row.verdict != "loaded":
            shown = ", ".join(row.names[:SHOWN]) + (", ..." if len(row.names) > SHOWN else "")
            logger.debug(
                "init_from: %s: %d of %s (%s): %s",
                *(row.verdict, len(row.names), row.part, row.reason, shown),
            )
    transfer.write(folder)


def check_sources(config: Config, root: Path, stages: Collection[str], resume: str) -> None:
    """Refuse a missing `init_from` of any stage before the first one trains (see `find_weights`).

    A stage that has begun goes on from its own checkpoints and needs it no more.
    """
    for stage in stages:
        path = getattr(config, f"{stage}_train").init_from
        begun = any(step.complete for step in list_steps(root / stage))
        if path and (resume == "never" or not begun):
            find_weights(Path(path), stage)


def find_weights(path: Path, stage: str) -> Path:
    """The file of weights that `path` means: itself, or the one of a finished stage or run.

    Raises ConfigError where there is none for `stage`, IntegrityError where its hash is wrong.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise ConfigError(
            f"init_from: {path} does not exist",
            hint="give a run, a stage folder or a model.safetensors, or leave it empty",
        )
    folder = path if (path / layout.STAGE).is_file() else path / stage
    if not (folder / layout.STAGE).is_file():
        begun = (folder / layout.WEIGHTS).is_file()
        raise ConfigError(
            f"init_from: {path} holds no finished {stage} stage",
            hint=f"its best weights so far are {folder / layout.WEIGHTS}"
            if begun
            else "give a run, a stage folder or a model.safetensors",
        )
    try:
        found = read_json(folder / layout.STAGE)
        if isinstance(found, dict) and found.get("stage") not in (stage, None):
            raise ConfigError(
                f"init_from: {path} is a {found['stage']} stage, not a {stage} stage",
                hint=f"give {path.parent}: a run gives each stage its own weights",
            )
        read_stage(folder)
    except IntegrityError as error:
        raise IntegrityError(f"init_from: {error.message}", hint=_COPY) from error
    return folder / layout.WEIGHTS


def _read(path: Path) -> dict[str, Tensor]:
    try:
        given: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"init_from: {path} cannot be read: {error}", hint=_COPY) from error
    for name, tensor in given.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise IntegrityError(f"init_from: {name} in {path} has NaN or infinity", hint=_COPY)
    return given


STARTS_AT_ZERO = "book.bonus"
"""a part of a codebook that follows from its statistics after the first steps"""


def _judge(
    task: Task,
    model: nn.Module,
    given: dict[str, Tensor],
    other: str,
    strange: Mapping[str, str],
) -> list[Verdict]:
    """A verdict on every tensor of the model, then on those that only the file has. `other`: why
    the file's codebook means something else, if it does; `strange`: why rows per id do, by the
    beginning of their names.
    """
    own = model.state_dict()
    codebook = _codebook_names(task, model)
    reasons = {name: _misfit(tensor, given.get(name)) for name, tensor in own.items()}
    for start, why in strange.items():
        reasons |= {name: reasons[name] or why for name in own if name.startswith(start)}
    if not task.learns_buffers:
        reasons |= dict.fromkeys(codebook, "comes from this run's own inputs")
    elif other:
        reasons |= {name: reasons[name] or other for name in codebook}
    elif any(reasons[name] for name in codebook if not name.endswith(STARTS_AT_ZERO)):
        whole = "the codebook is taken whole or not at all"
        reasons |= {name: reasons[name] or whole for name in codebook}
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
    verdicts = [
        Verdict(
            name,
            "fresh" if reasons[name] else "loaded",
            reasons[name],
            part_of(task.name, name),
            tuple(tensor.shape),
        )
        for name, tensor in own.items()
    ]
    return verdicts + [
        Verdict(name, "unused", "this model has none", part_of(task.name, name), shapes[name])
        for name in sorted(given.keys() - own.keys())
    ]


def _codebook_names(task: Task, model: nn.Module) -> set[str]:
    """The saved buffers; with a codebook that the task learns also the quantizer's parameters."""
    own = model.state_dict().keys()
    buffers = {name for name, _ in model.named_buffers()} & own
    if not task.learns_buffers:
        return buffers
    return buffers | {name for name in own if part_of(task.name, name) == "quantizer"}


def _misfit(own: Tensor, given: Tensor | None) -> str:
    """Why a tensor cannot be taken; empty when it can."""
    if given is None:
        return "not in the file"
    if own.shape != given.shape:
        return f"shape {list(given.shape)} in the file, {list(own.shape)} here"
    if own.is_floating_point() != given.is_floating_point():
        return f"{given.dtype} in the file, {own.dtype} here"
    return ""


def _example(verdicts: list[Verdict]) -> str:
    """The first matrix or kernel that does not fit, in words."""
    misfits = [v for v in verdicts if v.verdict == "fresh" and len(v.shape) >= 2]
    with_shape = [v for v in misfits if "shape" in v.reason]
    return next((f"{v.name}: {v.reason}" for v in with_shape + misfits), "it has none in common")


def _check_frozen(stage: str, frozen: list[Verdict]) -> None:
    """Refuse to freeze what the file did not give: it would stay random for ever."""
    lacking = [v for v in frozen if v.verdict == "fresh"]
    if lacking:
        first = lacking[0]
        parts = ", ".join(dict.fromkeys(v.part for v in lacking))
        raise ConfigError(
            f"{stage}_train.freeze: {parts} cannot be frozen, init_from does not give "
            f"{len(lacking)} of its tensors, e.g. {first.name}: {first.reason}",
            hint=f"take {parts} out of freeze, or give weights that have it",
        )
