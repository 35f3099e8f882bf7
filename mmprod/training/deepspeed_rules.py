"""Stage, offload, precision, optimizer and schedule of a DeepSpeed file."""

from __future__ import annotations

from typing import Literal

from mmprod.config.schema import TrainConfig
from mmprod.training.deepspeed_fates import ZERO
from mmprod.training.deepspeed_file import AUTO
from mmprod.training.deepspeed_keys import find
from mmprod.training.deepspeed_ledger import Ledger

Weights = Literal["fp32", "bf16", "fp16"]

SIZES = {
    "reduce_bucket_size": 50_000_000,
    "allgather_bucket_size": 50_000_000,
    "stage3_prefetch_bucket_size": 10_000_000,
    "stage3_param_persistence_threshold": 10_000,
}
"""what "auto" means for sizes (elements)"""

WRITTEN_OUT = "contiguous_gradients reduce_scatter"
WRITTEN_OUT_3 = """
    sub_group_size stage3_max_live_parameters stage3_max_reuse_distance
    stage3_model_persistence_threshold
"""
FP16_WRITTEN_OUT = """
    auto_cast loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis
    min_loss_scale
"""
DEFAULT = "DeepSpeed's default, written out"


def offload(book: Ledger, stage: int) -> bool:
    """Whether anything is offloaded to the CPU. Raises ConfigError."""
    found = False
    for name, old, least in (
        ("offload_param", "cpu_offload_param", 3),
        ("offload_optimizer", "cpu_offload", 1),
    ):
        key, retired = f"{ZERO}.{name}.device", f"{ZERO}.{old}"
        device = book.asked(key)
        if book.asked(retired) is True and device in (None, AUTO):
            device = "cpu"
        book.drop(retired, f"retired name of {name}.device")
        device = "none" if device in (None, AUTO) else device
        if device == "nvme":
            raise book.error(key, "NVMe offload is not supported", hint='use "cpu" or "none"')
        if device == "cpu" and stage < least:
            where = key if book.asked(key) == "cpu" else retired
            raise book.error(where, f"it needs ZeRO stage {least}", hint=f"{ZERO}.stage = {least}")
        if device == "none":
            for part in book.keys(f"{ZERO}.{name}"):
                book.drop(part, "nothing is offloaded")
            continue
        found = True
        book.put(key, device, "as written" if book.asked(key) == "cpu" else f"{old} is set")
        book.default(f"{ZERO}.{name}.pin_memory", True, DEFAULT)
    ratio = f"{ZERO}.offload_optimizer.ratio"
    if book.asked(ratio) not in (None, AUTO, 1) and stage < 3:
        raise book.error(ratio, "partial offload needs ZeRO stage 3", hint="remove it")
    return found


def zero(book: Ledger, stage: int) -> None:
    """Bucket sizes and what else DeepSpeed would choose in silence."""
    for name, size in SIZES.items():
        if stage == 3 or not name.startswith("stage3_"):
            theirs = find(f"{ZERO}.{name}")
            usual = theirs.default if theirs else None
            why = f"mmprod's choice; DeepSpeed's default is {usual:,} elements"
            book.default(f"{ZERO}.{name}", size, why)
    for name in (WRITTEN_OUT + (WRITTEN_OUT_3 if stage == 3 else "")).split():
        _write_out(book, f"{ZERO}.{name}")
    book.default(f"{ZERO}.overlap_comm", stage == 3, DEFAULT)
    if stage < 3:
        for key in book.keys(ZERO):
            if key.startswith(f"{ZERO}.stage3_"):
                book.drop(key, "it acts at ZeRO stage 3 only")


def _write_out(book: Ledger, key: str) -> None:
    entry = find(key)
    book.default(key, entry.default if entry else None, DEFAULT)


def precision(book: Ledger, cfg: TrainConfig, stage: int) -> Weights:
    """The kind of weights that ZeRO keeps (with fp32 masters where it is not fp32).

    bf16 needs no loss scale, so precision bf16 may also mean autocast over fp32 weights; fp16 needs
    DeepSpeed's loss scale, so there it means fp16 weights. Raises ConfigError.
    """
    wanted = {kind: book.asked(f"{kind}.enabled") for kind in ("bf16", "fp16")}
    for kind, value in wanted.items():
        if value is True and cfg.precision != kind:
            raise book.error(
                f"{kind}.enabled",
                f'the training section says precision = "{cfg.precision}"',
                hint=f'write "auto" for {kind}.enabled, or -o codec_train.precision={kind} '
                "(fusion_train likewise)",
            )
    if wanted["fp16"] is False and cfg.precision == "fp16":
        raise book.error(
            "fp16.enabled",
            'the training section says precision = "fp16", which needs DeepSpeed\'s loss scale',
            hint='write "auto" for fp16.enabled, or use precision = "bf16"',
        )
    bf16 = wanted["bf16"] is True or (wanted["bf16"] == AUTO and cfg.precision == "bf16")
    if wanted["bf16"] == AUTO and stage == 0:
        bf16 = False
    weights: Weights = "fp16" if cfg.precision == "fp16" else "bf16" if bf16 else "fp32"
    if weights != "fp32" and stage == 0:
        raise book.error(
            f"{weights}.enabled",
            f"ZeRO stage 0 with {weights} weights makes a wrong first step in DeepSpeed",
            hint="use stage 1"
            + (", or bf16.enabled = false: autocast over fp32 weights" if bf16 else ""),
        )
    why = f'precision = "{cfg.precision}" of the training section'
    said = "as written" if wanted["bf16"] in (True, False) else why
    silent = cfg.precision == "bf16" and not bf16
    book.put("bf16.enabled", bf16, f"{said}: autocast over fp32 weights" if silent else said)
    _scale(book, weights == "fp16", why)
    if bf16:
        _write_out(book, "bf16.check_grad_overflow")
        _accumulation_type(book, stage)
    return weights


def _scale(book: Ledger, on: bool, why: str) -> None:
    """The section fp16: the loss scale; no section for other weights."""
    if not on:
        for key in book.keys("fp16"):
            book.drop(key, f"off: {why}" if key == "fp16.enabled" else "fp16 is off")
        return
    book.put("fp16.enabled", True, "as written" if book.asked("fp16.enabled") is True else why)
    for name in FP16_WRITTEN_OUT.split():
        _write_out(book, f"fp16.{name}")


def _accumulation_type(book: Ledger, stage: int) -> None:
    key = "data_types.grad_accum_dtype"
    if stage == 1 and book.asked(key) == "fp32":
        raise book.error(
            key,
            "with bf16 weights at ZeRO stage 1 DeepSpeed takes another optimizer for it, whose "
            "state cannot be saved here",
            hint="use stage 2, or remove it",
        )


def optimizer(book: Ledger, cfg: TrainConfig, offloaded: bool) -> None:
    """AdamW by the training section. Raises ConfigError."""
    key, params = "optimizer.type", "optimizer.params"
    kind = book.asked(key)
    if kind is not None and kind.lower() not in ("adam", "adamw"):
        raise book.error(
            key, f"the training section says optimizer = {cfg.optimizer!r}", hint='use "AdamW"'
        )
    written = "as written" if kind == "AdamW" else "Adam with decoupled weight decay is AdamW"
    book.put(key, "AdamW", written if kind else "the optimizer here")
    book.settle(f"{params}.lr", cfg.lr, "lr")
    book.settle(f"{params}.betas", list(cfg.betas), "betas")
    book.settle(f"{params}.weight_decay", cfg.weight_decay, "weight_decay")
    book.fix(f"{params}.eps", 1e-8, "eps of AdamW")
    torch_adam = f"{params}.torch_adam"
    if not offloaded:
        book.default(torch_adam, True, "torch's AdamW needs no compiler")
    elif book.asked(torch_adam) is True:
        raise book.error(torch_adam, "offload needs DeepSpeed's CPU Adam", hint="remove it")
    else:
        book.drop(torch_adam, "offload takes DeepSpeed's CPU Adam")


SCHEDULERS = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR")


def scheduler(book: Ledger, cfg: TrainConfig) -> None:
    """The loop sets the rate: linear warm-up from 0, then a cosine. Raises ConfigError where the
    file says something else.
    """
    keys = book.keys("scheduler")
    if not keys:
        return
    kind = book.asked("scheduler.type")
    if kind not in (AUTO, *SCHEDULERS):
        raise book.error(
            "scheduler.type",
            "the loop sets the rate: a linear warm-up, then a cosine",
            hint="remove the section scheduler; lr, warmup, steps and lr_final of the training "
            "section decide",
        )
    params = "scheduler.params"
    for name, fixed, what in (
        ("warmup_min_lr", 0, "the rate before the warm-up"),
        ("warmup_min_ratio", 0, "the rate before the warm-up"),
        ("warmup_type", "linear", "the kind of warm-up"),
    ):
        book.fix(f"{params}.{name}", fixed, what, passed=False)
    for name, ours, setting in (
        ("warmup_max_lr", cfg.lr, "lr"),
        ("warmup_num_steps", cfg.warmup, "warmup"),
        ("total_num_steps", cfg.steps, "steps"),
        ("cos_min_ratio", cfg.lr_final, "lr_final"),
    ):
        book.settle(f"{params}.{name}", ours, setting, passed=False)
    book.only(f"{params}.last_batch_iteration", -1, "training resumes by itself: remove it")
    own = f"linear warm-up over {cfg.warmup} steps, cosine to {cfg.lr_final:g} of lr"
    book.drop("scheduler.type", f"the loop's own schedule: {own}")
