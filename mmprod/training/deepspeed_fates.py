"""Keys of a DeepSpeed file that cannot be used here, have one possible value, or no effect."""

from __future__ import annotations

from typing import Any

from mmprod.training.deepspeed_file import AUTO
from mmprod.training.deepspeed_keys import find
from mmprod.training.deepspeed_ledger import Ledger

ZERO = "zero_optimization"

_ACTIVATIONS = "use -o codec_train.activation_checkpointing=true or the same of fusion_train"
_MASTERS = "checkpoints and averages need fp32 masters and fp32 optimizer state"
_REMOVED = "DeepSpeed 0.19 has removed it: remove the section"
_UNUSED = "no model here uses it: remove the section"

SWITCHED_OFF = {
    "amp": "use precision of the training section",
    "torch_autocast": "use precision of the training section",
    "tensorboard": "training writes TensorBoard events by itself",
    "csv_monitor": "training writes metrics.jsonl by itself",
    "wandb": 'use log.to = ["tensorboard", "wandb"] in the configuration',
    "comet": 'use log.to = ["tensorboard", "mlflow"] in the configuration',
    "activation_checkpointing": _ACTIVATIONS,
    "autotuning": "use mmprod plan",
    "compile": "DeepCompile is not supported: remove the section",
    "compression_training": _REMOVED,
    "curriculum_learning": _REMOVED,
    "data_efficiency": "the loop decides the order of the data: remove the section",
    "datastates": "training writes its own verified checkpoints: remove the section",
    "eigenvalue": _REMOVED,
    "elasticity": "checkpoints load at any number of ranks: remove the section",
    "expert_parallel": _UNUSED,
    "graph_harvesting": _REMOVED,
    "hybrid_engine": _UNUSED,
    "nebula": "training writes its own verified checkpoints: remove the section",
    "pipeline": _UNUSED,
    "progressive_layer_drop": _REMOVED,
    "quantize_training": _REMOVED,
    "sequence_parallel_size": _UNUSED,
    "sparse_attention": _REMOVED,
    "sparse_gradients": _REMOVED,
    "tensor_parallel": _UNUSED,
    "use_data_before_expert_parallelism": _UNUSED,
    "weight_quantization": _UNUSED,
    f"{ZERO}.zenflow": "remove it: it updates weights late",
    f"{ZERO}.leaf_module": "no model here needs leaf modules: remove it",
    f"{ZERO}.mics_hierarchical_params_gather": _REMOVED,
    f"{ZERO}.zeropp_loco_param": _REMOVED,
}
"""Sections (and keys) of things that cannot be used here, but may stand in a file switched off; and
the way there."""

ONLY: dict[str, tuple[Any, str]] = {
    "managed_gradient_accumulation": (True, "DeepSpeed counts the micro-batches: remove it"),
    "gradient_allreduce_op": ("mean", "losses and clipping are those of the mean: remove it"),
    "disable_allgather": (False, "weights must reach all ranks: remove it"),
    "optimizer.legacy_fusion": (False, "remove it"),
    "optimizer.params.adam_w_mode": (
        True,
        "the optimizer is AdamW, whose weight decay is no part of the gradient: remove it",
    ),
    "optimizer.params.bias_correction": (True, "the optimizer corrects the bias: remove it"),
    "optimizer.params.amsgrad": (False, "AMSGrad is not supported: remove it"),
    "fp16.fp16_master_weights_and_grads": (False, _MASTERS),
    "bf16.bf16_master_weights_and_grads": (False, _MASTERS),
    "bf16.bf16_optimizer_states": (False, _MASTERS),
    "data_types.buffer_dtype": ("fp32", "codebooks are buffers and stay fp32: remove it"),
    f"{ZERO}.compute_grad_norm": (True, "the norm is needed to find NaN before an update"),
    f"{ZERO}.legacy_stage1": (False, "remove it: the old stage 1 is gone"),
    f"{ZERO}.elastic_checkpoint": (False, "checkpoints load at any number of ranks: remove it"),
    f"{ZERO}.pipeline_loading_checkpoint": (False, "no model here is a pipeline: remove it"),
    f"{ZERO}.mics_shard_size": (-1, _REMOVED),
    f"{ZERO}.offload_optimizer.super_offload": (False, "it needs a GH200: remove it"),
    "checkpoint.load_universal": (False, "checkpoints load at any number of ranks: remove it"),
    "checkpoint.use_node_local_storage": (
        False,
        "put the run folder on a file system that all nodes share",
    ),
}
"""Keys that allow one value here, DeepSpeed's default; and the way there."""

WITHOUT_EFFECT = {
    "steps_per_print": "the loop logs, every log_every steps of the training section",
    "zero_allow_untested_optimizer": "AdamW is tested",
    "zero_force_ds_cpu_optimizer": "the offloaded update is DeepSpeed's CPU Adam in any case",
    "dataloader_drop_last": "the loop decides which samples make a batch",
    "vocabulary_size": "DeepSpeed only warns about it",
    "seq_parallel_communication_data_type": "no sequence is divided here",
    "log_level": "mmprod's -v and -q decide what is logged",
    "timers": "the loop measures by itself",
    "aio": "it acts on NVMe offload only",
    "checkpoint": "training writes its own verified checkpoints",
    f"{ZERO}.load_from_fp32_weights": "it acts on DeepSpeed's own checkpoints",
    f"{ZERO}.stage3_gather_16bit_weights_on_model_save": "training writes whole fp32 weights",
    f"{ZERO}.stage3_gather_fp16_weights_on_model_save": "training writes whole fp32 weights",
    f"{ZERO}.save_muon_momentum_buffer_in_memory": "it acts on Muon with NVMe offload only",
    f"{ZERO}.cpu_offload_use_pin_memory": "pin_memory of offload_optimizer decides",
    f"{ZERO}.offload_param.nvme_path": "there is no NVMe offload",
    f"{ZERO}.offload_optimizer.nvme_path": "there is no NVMe offload",
    f"{ZERO}.offload_optimizer.cpuadam_cores_perc": "it acts on super_offload only",
}

MEASURES = (
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "flops_profiler",
    "comms_logger",
)
"""What DeepSpeed would print on stdout, which belongs to the result: switched off."""


def tidy(book: Ledger) -> None:
    """Settle everything that is switched off, without effect, or has one possible value.

    Raises ConfigError.
    """
    for section, hint in SWITCHED_OFF.items():
        on = next((key for key in book.keys(section) if _is_on(book, section, key)), None)
        if on is not None:
            raise book.error(on, "it cannot be used here", hint=hint)
        for key in book.keys(section):
            book.drop(key, _why_off(book, section, key, hint))
    _measures(book)
    for key, (value, why) in ONLY.items():
        book.only(key, value, why)
    for section, why in WITHOUT_EFFECT.items():
        for key in book.keys(section):
            if key not in ONLY:
                book.drop(key, f"no effect: {why}")


def _measures(book: Ledger) -> None:
    for section in MEASURES:
        if any(_is_on(book, section, key) for key in book.keys(section)):
            for key in book.keys(section):
                book.drop(key, "switched off: the loop measures by itself, see docs/monitoring.md")


def _is_on(book: Ledger, section: str, key: str) -> bool:
    """Whether `key` switches `section` on. A section with a switch is off without it."""
    value = book.asked(key)
    if find(f"{section}.enabled") is not None:
        return key == f"{section}.enabled" and value is True
    if isinstance(value, dict):
        return _any_on(value)
    return value is True or (value not in (AUTO, False) and key == section and bool(value))


def _any_on(value: Any) -> bool:
    """Whether something in an unchecked section is on; "enabled" decides for what stands beside it
    and below.
    """
    if isinstance(value, dict):
        if "enabled" in value:
            return _any_on(value["enabled"])
        return any(_any_on(part) for part in value.values())
    return value != AUTO and bool(value)


def _why_off(book: Ledger, section: str, key: str, hint: str) -> str:
    """A value that is neither off nor beside a switch is said to do nothing."""
    value = book.asked(key)
    beside_switch = find(f"{section}.enabled") is not None or isinstance(value, dict)
    if beside_switch or value == AUTO or not value:
        return "switched off"
    return f"no effect, nothing of {section} is on: {hint}"
