"""A DeepSpeed file made complete and checked. Torch-free and DeepSpeed-free.

DeepSpeed leaves "auto" to its callers, ignores unknown keys, clips gradients by 1.0 unless told
otherwise, and takes an empty first Adam step with bf16 at stage 0. Here every "auto" is resolved
from the training section, an explicit value that disagrees with it is an error, and every silent
default that matters is written down.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprod.config.keys import did_you_mean
from mmprod.config.schema import TrainConfig
from mmprod.errors import ConfigError
from mmprod.training.deepspeed_keys import AUTO_SIZES, REFUSED, SECTIONS, known

Json = dict[str, Any]


@dataclass(frozen=True)
class Resolved:
    """The complete configuration that DeepSpeed receives, and what the loop must know of it."""

    config: Json
    stage: int
    accumulation: int
    bf16_weights: bool
    """ZeRO keeps bf16 weights with fp32 masters; else fp32 weights (and autocast where precision is
    bf16)
    """
    offload: bool


def read_deepspeed(path: Path) -> Json:
    """Read a DeepSpeed file and check its keys. Raises ConfigError."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_duplicates)
    except OSError as error:
        hint = "shipped ones: configs/deepspeed/zero{0,1,2,3}.json"
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}", hint="mend the file") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold one JSON object", hint="mend the file")
    check_keys(raw, str(path))
    return raw


def _no_duplicates(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return found


def check_keys(raw: Json, where: str, section: str = "") -> None:
    """Refuse unknown keys (with the nearest known one) and keys this loop cannot take.

    Raises ConfigError.
    """
    for key, value in raw.items():
        full = f"{section}.{key}" if section else key
        if full in REFUSED:
            raise ConfigError(f"{where}: {full!r} cannot be used here", hint=REFUSED[full])
        if key not in known(section):
            choices = known(section)
            hint = did_you_mean(key, choices) or "known here: " + ", ".join(choices)
            raise ConfigError(f"{where}: unknown key {full!r}", hint=hint)
        if full in SECTIONS and value is not None:
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{where}: {full!r} must be an object", hint="see configs/deepspeed/"
                )
            check_keys(value, where, full)


def resolve(raw: Json, cfg: TrainConfig, world: int) -> Resolved:
    """Fill in what the training section decides.

    Raises ConfigError where both files say different things.
    """
    out = deepcopy(raw)
    accumulation = _batch(out, cfg, world)
    _settle(out, "", "gradient_clipping", cfg.clip)
    out.setdefault("steps_per_print", None)
    zero = out.setdefault("zero_optimization", {})
    zero.setdefault("stage", 0)
    stage = zero["stage"]
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise ConfigError(f"zero_optimization.stage is {stage!r}", hint="use 0, 1, 2 or 3")
    for key, size in AUTO_SIZES.items():
        if zero.get(key, "auto") == "auto":
            zero[key] = size
    offload = _offload(zero)
    bf16_weights = _precision(out, cfg, stage)
    _optimizer(out, cfg, offload)
    _no_auto(out)
    return Resolved(out, stage, accumulation, bf16_weights, offload)


def _settle(section: Json, prefix: str, key: str, ours: Any) -> None:
    """Absent or "auto": our value. Anything else must equal ours."""
    theirs = section.get(key, "auto")
    if theirs == "auto" or theirs is None:
        section[key] = ours
        return
    same = list(theirs) == list(ours) if isinstance(theirs, list) else theirs == ours
    if not same:
        raise ConfigError(
            f"the DeepSpeed file says {prefix}{key} = {json.dumps(theirs)}, "
            f"the training section {json.dumps(ours)}",
            hint=f'write "auto" for {prefix}{key} in the DeepSpeed file',
        )


def _batch(out: Json, cfg: TrainConfig, world: int) -> int:
    """Batch = micro-batch x accumulation x world. Returns the accumulation."""
    _settle(out, "", "train_batch_size", cfg.batch)
    micro, accumulation = (
        _count(out, key)
        for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    )
    if accumulation is None:
        accumulation = 1 if micro is None else max(1, cfg.batch // (micro * world))
    if cfg.batch % (world * accumulation):
        # Equal shares: the mean over ranks is then the mean over the global batch.
        raise ConfigError(
            f"batch {cfg.batch} does not divide into {world} processes x {accumulation} "
            "micro-batches",
            hint=f"choose a batch that is a multiple of {world * accumulation}",
        )
    ours = cfg.batch // (world * accumulation)
    if micro not in (None, ours):
        raise ConfigError(
            f"batch {cfg.batch} is not {world} processes x micro-batch {micro} x accumulation "
            f"{accumulation}",
            hint='write "auto" for train_micro_batch_size_per_gpu or gradient_accumulation_steps',
        )
    out["train_micro_batch_size_per_gpu"], out["gradient_accumulation_steps"] = ours, accumulation
    return accumulation


def _count(out: Json, key: str) -> int | None:
    value = out.get(key, "auto")
    if value in ("auto", None):
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{key} is {value!r}", hint='use a whole number from 1, or "auto"')
    return value


def _offload(zero: Json) -> bool:
    """Whether anything is offloaded to the CPU."""
    devices = {
        key: (zero.get(key) or {}).get("device", "none")
        for key in ("offload_param", "offload_optimizer")
    }
    for key, device in devices.items():
        if device not in ("none", "cpu"):
            raise ConfigError(
                f"zero_optimization.{key}.device is {device!r}", hint='use "cpu" or "none"'
            )
    return "cpu" in devices.values()


def _precision(out: Json, cfg: TrainConfig, stage: int) -> bool:
    """Whether ZeRO keeps bf16 weights. fp16 is refused: its skipped steps would not be repeatable
    across world sizes.
    """
    if (out.get("fp16") or {}).get("enabled") is True:
        raise ConfigError("fp16 training is not supported", hint='use {"bf16": {"enabled": true}}')
    out.pop("fp16", None)
    bf16 = out.setdefault("bf16", {})
    wanted = bf16.get("enabled", False)
    if wanted == "auto":
        wanted = cfg.precision == "bf16" and stage > 0
    if wanted and cfg.precision != "bf16":
        raise ConfigError(
            f"the DeepSpeed file enables bf16, the training section says {cfg.precision}",
            hint='write "auto" for bf16.enabled, or -o codec_train.precision=bf16',
        )
    if wanted and stage == 0:
        raise ConfigError(
            "ZeRO stage 0 with bf16 weights makes a wrong first step in DeepSpeed",
            hint="use stage 1, or bf16.enabled = false: precision bf16 is then autocast over fp32",
        )
    bf16["enabled"] = bool(wanted)
    return bool(wanted)


def _optimizer(out: Json, cfg: TrainConfig, offload: bool) -> None:
    optimizer = out.setdefault("optimizer", {"type": "AdamW", "params": {}})
    if optimizer.setdefault("type", "AdamW") != "AdamW":
        raise ConfigError(f"optimizer {optimizer['type']!r} is not supported", hint='use "AdamW"')
    params = optimizer.setdefault("params", {})
    _settle(params, "optimizer.params.", "lr", cfg.lr)
    _settle(params, "optimizer.params.", "betas", list(cfg.betas))
    _settle(params, "optimizer.params.", "weight_decay", cfg.weight_decay)
    _settle(params, "optimizer.params.", "eps", 1e-8)
    if not offload:
        params.setdefault("torch_adam", True)


def _no_auto(value: Any, path: str = "") -> None:
    if value == "auto" and path != "data_types.keep_in_fp32_modules":
        raise ConfigError(
            f'"auto" has no meaning for {path} in the DeepSpeed file',
            hint="write a value or remove it",
        )
    if isinstance(value, dict):
        for key, inner in value.items():
            _no_auto(inner, f"{path}.{key}" if path else key)
