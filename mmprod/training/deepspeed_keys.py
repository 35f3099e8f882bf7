"""The keys a DeepSpeed file may hold here, by section.

DeepSpeed itself ignores an unknown top-level key in silence. A key is listed when it works with
this training loop; what the loop decides itself is in `REFUSED` with the reason.
"""

from __future__ import annotations

TOP = """
    train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps
    gradient_clipping steps_per_print wall_clock_breakdown memory_breakdown dump_state
    prescale_gradients gradient_predivide_factor communication_data_type disable_python_gc
    log_level optimizer zero_optimization bf16 fp16 data_types comms_logger flops_profiler
"""

SECTIONS = {
    "optimizer": "type params",
    "optimizer.params": "lr betas eps weight_decay torch_adam adam_w_mode",
    "bf16": """
        enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads
        bf16_optimizer_states
    """,
    "fp16": """
        enabled auto_cast loss_scale initial_scale_power loss_scale_window hysteresis
        consecutive_hysteresis min_loss_scale fp16_master_weights_and_grads
    """,
    "data_types": "grad_accum_dtype param_dtype buffer_dtype keep_in_fp32_modules",
    "comms_logger": "enabled verbose prof_all debug prof_ops",
    "flops_profiler": """
        enabled recompute_fwd_factor profile_step module_depth top_modules detailed
        output_file
    """,
    "zero_optimization": """
        stage contiguous_gradients reduce_scatter reduce_bucket_size
        use_multi_rank_bucket_allreduce allgather_partitions allgather_bucket_size
        overlap_comm load_from_fp32_weights offload_param offload_optimizer
        sub_group_size stage3_prefetch_bucket_size stage3_param_persistence_threshold
        stage3_model_persistence_threshold stage3_max_live_parameters
        stage3_max_reuse_distance stage3_gather_16bit_weights_on_model_save
        stage3_module_granularity_threshold stage3_use_all_reduce_for_fetch_params
        stage3_allgather_sequential ignore_unused_parameters round_robin_gradients
        zero_hpz_partition_size zero_quantized_weights
        zero_quantized_nontrainable_weights zero_quantized_gradients
        memory_efficient_linear log_trace_cache_warnings enable_sanity_checks
    """,
    "zero_optimization.offload_param": "device buffer_count buffer_size max_in_cpu pin_memory",
    "zero_optimization.offload_optimizer": "device buffer_count pin_memory fast_init ratio",
}

REFUSED = {
    "scheduler": "the loop sets the rate: use lr, warmup and lr_final of the training section",
    "torch_autocast": "use precision of the training section",
    "amp": "use precision of the training section",
    "tensorboard": "training writes TensorBoard events by itself",
    "csv_monitor": "training writes metrics.jsonl by itself",
    "checkpoint": "training writes its own verified checkpoints",
    "zero_optimization.compute_grad_norm": "the norm is needed to find NaN before an update",
    "zero_optimization.leaf_module": "no model here needs leaf modules",
    "activation_checkpointing": "it acts on models built for it only",
}
"""keys that DeepSpeed knows and this loop does not take, with what to do instead"""

AUTO_SIZES = {
    "reduce_bucket_size": 50_000_000,
    "allgather_bucket_size": 50_000_000,
    "stage3_prefetch_bucket_size": 10_000_000,
    "stage3_param_persistence_threshold": 10_000,
}
"""what "auto" means for sizes (elements)"""


def known(section: str) -> list[str]:
    """The keys of `section` (dotted; empty for the top level)."""
    return (SECTIONS[section] if section else TOP).split()
