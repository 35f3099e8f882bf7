"""Every key of a DeepSpeed file: its kind, DeepSpeed's own default, and what becomes of it here.

DeepSpeed itself ignores an unknown top-level key in silence, and drops "auto" in silence where it
does not fail on it. So the names are written down, also those of features that this loop does not
use, since files carry them switched off. The defaults are those of DeepSpeed 0.19.8; a test
compares names and defaults with the library.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

NONE = "-"


@dataclass(frozen=True)
class Key:
    """`kind`: flag, count (from 1), size (from 0), stage (of ZeRO), number, share (0 to 1), text,
    names, pair, free (unchecked), section, or choices divided by |. `default`: DeepSpeed's, None
    where it has none.
    """

    kind: str
    default: Any = None


_EVENTS = """
    enabled      flag  false
    output_path  text  ""
    job_name     text  "DeepSpeedJobName"
"""
_TABLES = {
    "": """
        train_batch_size                      count            -
        train_micro_batch_size_per_gpu        count            -
        gradient_accumulation_steps           count            -
        gradient_clipping                     number           1.0
        steps_per_print                       size             -
        wall_clock_breakdown                  flag             false
        memory_breakdown                      flag             false
        dump_state                            flag             false
        disable_python_gc                     flag             false
        disable_allgather                     flag             false
        prescale_gradients                    flag             false
        gradient_predivide_factor             number           1.0
        gradient_allreduce_op                 mean|sum         "mean"
        managed_gradient_accumulation         flag             true
        communication_data_type               fp32|fp16|bf16   -
        seq_parallel_communication_data_type  fp32|fp16|bf16   "fp32"
        zero_allow_untested_optimizer         flag             false
        zero_force_ds_cpu_optimizer           flag             true
        dataloader_drop_last                  flag             false
        vocabulary_size                       count            -
        log_level                             text             -
        optimizer                             section          -
        scheduler                             section          -
        fp16                                  section          -
        bf16                                  section          -
        amp                                   section          -
        torch_autocast                        section          -
        data_types                            section          -
        zero_optimization                     section          -
        activation_checkpointing              section          -
        checkpoint                            section          -
        aio                                   section          -
        comms_logger                          section          -
        flops_profiler                        section          -
        tensorboard                           section          -
        wandb                                 section          -
        csv_monitor                           section          -
        comet                                 section          -
        timers                                free             -
        autotuning                            free             -
        compile                               free             -
        compression_training                  free             -
        curriculum_learning                   free             -
        data_efficiency                       free             -
        datastates                            free             -
        eigenvalue                            free             -
        elasticity                            free             -
        expert_parallel                       free             -
        graph_harvesting                      free             -
        hybrid_engine                         free             -
        nebula                                free             -
        pipeline                              free             -
        progressive_layer_drop                free             -
        quantize_training                     free             -
        sequence_parallel_size                free             -
        sparse_attention                      free             -
        sparse_gradients                      free             -
        tensor_parallel                       free             -
        use_data_before_expert_parallelism    free             -
        weight_quantization                   free             -
    """,
    "optimizer": """
        type                                  text             -
        params                                section          -
        legacy_fusion                         flag             false
    """,
    "optimizer.params": """
        lr                                    number           -
        betas                                 pair             -
        eps                                   number           -
        weight_decay                          number           -
        torch_adam                            flag             -
        adam_w_mode                           flag             true
        bias_correction                       flag             true
        amsgrad                               flag             false
    """,
    "scheduler": "type text -\n params section -",
    "scheduler.params": """
        warmup_min_lr                         number           -
        warmup_max_lr                         number           -
        warmup_min_ratio                      number           -
        cos_min_ratio                         number           -
        warmup_num_steps                      size             -
        total_num_steps                       count            -
        warmup_type                           log|linear       -
        last_batch_iteration                  free             -
    """,
    "fp16": """
        enabled                               flag             false
        auto_cast                             flag             false
        loss_scale                            number           0
        initial_scale_power                   size             16
        loss_scale_window                     count            1000
        hysteresis                            count            2
        consecutive_hysteresis                flag             false
        min_loss_scale                        count            1
        fp16_master_weights_and_grads         flag             false
    """,
    "bf16": """
        enabled                               flag             false
        immediate_grad_update                 flag             false
        check_grad_overflow                   flag             true
        bf16_master_weights_and_grads         flag             false
        bf16_optimizer_states                 flag             false
    """,
    "amp": "enabled flag -\n opt_level text -",
    "torch_autocast": """
        enabled                               flag             -
        dtype                                 text             -
        lower_precision_safe_modules          names            -
    """,
    "data_types": """
        grad_accum_dtype                      fp32|fp16|bf16   -
        param_dtype                           fp32|fp16|bf16   -
        buffer_dtype                          fp32|fp16|bf16   -
        keep_in_fp32_modules                  names            "auto"
    """,
    "zero_optimization": """
        stage                                 stage            -
        contiguous_gradients                  flag             true
        reduce_scatter                        flag             true
        reduce_bucket_size                    count            500000000
        use_multi_rank_bucket_allreduce       flag             true
        allgather_partitions                  flag             true
        allgather_bucket_size                 size             500000000
        overlap_comm                          flag             -
        compute_grad_norm                     flag             true
        load_from_fp32_weights                flag             true
        elastic_checkpoint                    flag             false
        legacy_stage1                         flag             false
        offload_param                         section          -
        offload_optimizer                     section          -
        zenflow                               free             -
        leaf_module                           free             -
        mics_shard_size                       free             -
        mics_hierarchical_params_gather       free             -
        zeropp_loco_param                     free             -
        cpu_offload                           flag             -
        cpu_offload_param                     flag             -
        cpu_offload_use_pin_memory            flag             -
        sub_group_size                        size             1000000000
        stage3_prefetch_bucket_size           size             50000000
        stage3_param_persistence_threshold    size             100000
        stage3_model_persistence_threshold    size             9223372036854775807
        stage3_max_live_parameters            size             1000000000
        stage3_max_reuse_distance             size             1000000000
        stage3_gather_16bit_weights_on_model_save  flag        false
        stage3_gather_fp16_weights_on_model_save   flag        false
        stage3_module_granularity_threshold   size             0
        stage3_use_all_reduce_for_fetch_params     flag        false
        stage3_allgather_sequential           flag             false
        ignore_unused_parameters              flag             true
        round_robin_gradients                 flag             false
        parameter_alignment                   flag             false
        zero_hpz_partition_size               size             1
        zero_quantized_weights                flag             false
        zero_quantized_nontrainable_weights   flag             false
        zero_quantized_gradients              flag             false
        memory_efficient_linear               flag             true
        pipeline_loading_checkpoint           flag             false
        override_module_apply                 flag             true
        save_muon_momentum_buffer_in_memory   flag             false
        log_trace_cache_warnings              flag             false
        enable_sanity_checks                  flag             false
    """,
    "zero_optimization.offload_param": """
        device                                none|cpu|nvme    "none"
        nvme_path                             text             -
        buffer_count                          size             5
        buffer_size                           size             100000000
        max_in_cpu                            size             1000000000
        pin_memory                            flag             true
    """,
    "zero_optimization.offload_optimizer": """
        device                                none|cpu|nvme    "none"
        nvme_path                             text             -
        buffer_count                          size             4
        pin_memory                            flag             true
        pipeline_read                         flag             false
        pipeline_write                        flag             false
        fast_init                             flag             false
        ratio                                 share            1.0
        super_offload                         flag             false
        cpuadam_cores_perc                    share            0.8
    """,
    "activation_checkpointing": """
        partition_activations                 flag             false
        cpu_checkpointing                     flag             false
        contiguous_memory_optimization        flag             false
        synchronize_checkpoint_boundary       flag             false
        number_checkpoints                    size             -
        profile                               flag             false
    """,
    "checkpoint": """
        tag_validation                        text             "Warn"
        load_universal                        flag             false
        use_node_local_storage                flag             false
        parallel_write                        free             -
        writer                                free             -
    """,
    "aio": """
        block_size                            size             1048576
        queue_depth                           size             8
        intra_op_parallelism                  size             1
        thread_count                          size             1
        single_submit                         flag             false
        overlap_events                        flag             true
        use_gds                               flag             false
    """,
    "comms_logger": """
        enabled                               flag             false
        verbose                               flag             false
        prof_all                              flag             true
        debug                                 flag             false
        prof_ops                              names            []
    """,
    "flops_profiler": """
        enabled                               flag             false
        recompute_fwd_factor                  number           0.0
        profile_step                          count            1
        module_depth                          free             -1
        top_modules                           count            1
        detailed                              flag             true
        output_file                           text             -
    """,
    "tensorboard": _EVENTS,
    "csv_monitor": _EVENTS,
    "wandb": """
        enabled                               flag             false
        group                                 text             -
        team                                  text             -
        project                               text             "deepspeed"
    """,
    "comet": """
        enabled                               flag             false
        samples_log_interval                  count            100
        project                               text             -
        workspace                             text             -
        api_key                               text             -
        experiment_name                       text             -
        experiment_key                        text             -
        online                                flag             -
        mode                                  text             -
    """,
}


def _parse(table: str) -> dict[str, Key]:
    keys = {}
    for line in table.split("\n"):
        if line.strip():
            name, kind, default = line.split(maxsplit=2)
            keys[name] = Key(kind, None if default == NONE else json.loads(default))
    return keys


KEYS: dict[str, dict[str, Key]] = {section: _parse(table) for section, table in _TABLES.items()}
"""dotted section ("" for the top level) -> key -> what it is"""


def find(path: str) -> Key | None:
    """The entry of a dotted key, or None."""
    section, _, name = path.rpartition(".")
    return KEYS.get(section, {}).get(name)
