"""A step folder -> files that other programs train on from: plain PyTorch, or DeepSpeed's universal
checkpoints (Lian et al., Universal Checkpointing, 2024: one folder per parameter, any ZeRO stage).

Both are pickles of tensors and numbers, as those programs want them; mmprod itself reads neither.
Names are those of the module that was trained (with the losses around a fusion model).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmprod.checkpoint import layout
from mmprod.checkpoint.consolidate import Step
from mmprod.checkpoint.state import ADAM_STEP, AVERAGE, BUFFERS, FROZEN, WEIGHT
from mmprod.config.load import load_config
from mmprod.config.train import TrainConfig
from mmprod.errors import ConfigError

Format = Literal["pytorch", "deepspeed-universal"]
PYTORCH_FILE = "model.pt"
MOMENTS = ("exp_avg", "exp_avg_sq")
DEEPSPEED = "0.19.8"
"""the version whose form is written"""
GROUPS = 64
"""parameter groups that the universal form fills: DeepSpeed restores as many as both sides have"""


def convert(step: Step, out: Path, to: Format) -> list[Path]:
    """Write `step` into the new folder `out`. Returns the files that matter.

    Raises ConfigError where the state has no such form, or `out` is there already.
    """
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise ConfigError(f"{out} is there already", hint="name a new folder")
    writers: dict[str, Callable[[Step, Path], list[Path]]] = {
        "pytorch": _pytorch,
        "deepspeed-universal": _universal,
    }
    if to == "deepspeed-universal":
        _check_adam(step)
    unfinished = out.with_name(f".unfinished-{out.name}")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    try:
        files = writers[to](step, unfinished)
        if out.is_dir():
            out.rmdir()
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)  # the next try removes what is left
        raise
    return [out / file.relative_to(unfinished) for file in files]


def _pytorch(step: Step, out: Path) -> list[Path]:
    """One file: {step, model, averaged, optimizers}; load it with weights_only=True."""
    beside = _beside(step)
    averaged = {name: _tensor(step, name, AVERAGE) for name in step.index}
    weights = {name: _tensor(step, name, WEIGHT) for name in step.index}
    state = {
        "step": int(step.manifest["progress"]["step"]),
        "model": step.with_aliases({**weights, **beside}),
        "averaged": step.with_aliases({**averaged, **beside}),
        "optimizers": _optimizers(step, weights),
    }
    _save(state, out / PYTORCH_FILE)
    return [out / PYTORCH_FILE]


def _save(value: Any, path: Path) -> None:
    """torch.save that raises what the system refused as OSError with the file's name."""
    try:
        with path.open("wb") as stream:
            torch.save(value, stream)
    except (OSError, RuntimeError) as error:
        refusal = error if isinstance(error, OSError) else error.__context__
        if not isinstance(refusal, OSError):
            raise
        raise OSError(refusal.errno, refusal.strerror, str(path)) from error


def _optimizers(step: Step, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """State dicts by name: AdamW in two groups (matrices, vectors without decay), Muon in one.

    The parameters of a group stand in the model's order, their names in `param_names`.
    """
    cfg = _settings(step)
    order = [name for name in step.manifest["model"]["trained"] if name in step.index]
    adam = [name for name in order if MOMENTS[0] in step.fields(step.index[name])]
    muon = [name for name in order if name not in adam]
    found: dict[str, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = [
        {"params": [(n, weights[n]) for n in adam if weights[n].ndim >= 2]},
        {"params": [(n, weights[n]) for n in adam if weights[n].ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if groups:
        decay = cfg.weight_decay
        optimizer = torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, weight_decay=decay)
        count = torch.tensor(float(step.manifest["scalars"][ADAM_STEP]))
        for name in adam:
            moments = {field: _tensor(step, name, field) for field in MOMENTS}
            optimizer.state[weights[name]] = {"step": count.clone(), **moments}
        found["adamw"] = optimizer.state_dict()
    if muon:
        named = [(name, weights[name]) for name in muon]
        mover = torch.optim.Muon(
            named, lr=cfg.lr, weight_decay=cfg.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        for name in muon:
            field = "momentum_buffer"
            mover.state[weights[name]] = {field: _tensor(step, name, field)}
        found["muon"] = mover.state_dict()
    return found


def _universal(step: Step, out: Path) -> list[Path]:
    """latest_universal, and TAG/ with the state that is not divided and zero/PARAMETER/*.pt."""
    tag = layout.step_name(int(step.manifest["progress"]["step"]))
    count = torch.tensor(float(step.manifest["scalars"][ADAM_STEP]))
    for name in step.index:
        folder = out / tag / "zero" / name
        folder.mkdir(parents=True)
        for field, file in {WEIGHT: "fp32", **{m: m for m in MOMENTS}}.items():
            _save({"param": _tensor(step, name, field)}, folder / f"{file}.pt")
        _save(count, folder / "step.pt")
    empty: list[dict[str, Any]] = [{"params": []} for _ in range(GROUPS)]
    _save(
        {
            "optimizer_state_dict": {"state": {0: {"step": count}}, "param_groups": empty},
            "param_groups": empty,
            "ds_version": DEEPSPEED,
        },
        out / tag / "zero" / "optimizer_state.pt",
    )
    common = {
        "module": _beside(step),
        "global_steps": int(step.manifest["progress"]["step"]),
        "skipped_steps": 0,
        "dp_world_size": int(step.manifest["world"]),
        "mp_world_size": 1,
        "lr_scheduler": None,
        "ds_version": DEEPSPEED,
    }
    for file in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        _save(common, out / tag / file)
    pointer = out / "latest_universal"
    pointer.write_text(tag, encoding="utf-8")
    return [pointer, out / tag]


def _check_adam(step: Step) -> None:
    other = [
        name for name, whole in step.index.items() if not {*MOMENTS} <= set(step.fields(whole))
    ]
    if other:
        raise ConfigError(
            f"{step.path}: {len(other)} parameters have no Adam moments (optimizer: "
            f"{step.manifest['identity']['backend']}), which DeepSpeed's universal form needs",
            hint="--to pytorch keeps the state of every optimizer",
        )


def _settings(step: Step) -> TrainConfig:
    """The training section of the run that the step belongs to."""
    stage = str(step.manifest["identity"]["stage"])
    path = step.path.absolute().parents[2] / layout.CONFIG
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing; the optimizer's settings are read from it",
            hint="give a step folder inside its run: RUN/<stage>/checkpoints/step-NNNNNNNN",
        )
    section: TrainConfig = getattr(load_config(str(path)), f"{stage}_train")
    return section


def _tensor(step: Step, name: str, field: str) -> Tensor:
    return torch.from_numpy(step.field(step.index[name], field))


def _beside(step: Step) -> dict[str, Tensor]:
    """Buffers and frozen weights."""
    arrays = {**step.beside(BUFFERS), **step.beside(FROZEN)}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
