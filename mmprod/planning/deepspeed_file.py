"""The DeepSpeed file of a plan; what the training section decides is left "auto"."""

from __future__ import annotations

from typing import Any

from mmprod.planning.memory import Layout


def deepspeed_file(layout: Layout, micro_batch: int) -> dict[str, Any]:
    """A DeepSpeed configuration that `mmprod train --deepspeed` takes."""
    zero: dict[str, Any] = {"stage": layout.stage or 0}
    if layout.stage:
        zero |= {"contiguous_gradients": True, "reduce_bucket_size": layout.bucket}
    if layout.stage in (1, 2):
        zero["allgather_bucket_size"] = layout.bucket
    if layout.stage == 3:
        zero["stage3_prefetch_bucket_size"] = layout.bucket
        zero["stage3_param_persistence_threshold"] = 0
    host = {"device": "cpu", "pin_memory": True}
    if layout.offload != "none":
        zero["offload_optimizer"] = dict(host)
    if layout.offload == "optimizer+param":
        zero["offload_param"] = dict(host)
    settings = {key: "auto" for key in ("lr", "betas", "eps", "weight_decay")}
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": layout.accumulation,
        "gradient_clipping": "auto",
        "optimizer": {"type": "AdamW", "params": settings},
        "bf16": {"enabled": layout.weights == "bf16"},
        "fp16": {"enabled": layout.weights == "fp16"},
        "zero_optimization": zero,
    }
