"""DeepSpeed's flat fp32 partitions seen as fragments (see fragments.py), for DeepSpeed 0.19.

    stages 1, 2: one flat partition per parameter group; it may begin or end inside a parameter
    stage 3:     every parameter is divided evenly, each rank's parts lie end to end per sub-group

Nothing is copied: the fields are views of what the optimizer updates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmprod.training.fragments import Fragment, is_moment, make_state
from mmprod.training.loss_scale import LossScale


def partitioned_fragments(
    optimizer: Any, parameters: Mapping[str, nn.Parameter], stage: int
) -> dict[str, Fragment]:
    """Fragments of a ZeRO optimizer of stage 1, 2 or 3; parameters of which this rank holds nothing
    are left out.
    """
    states = flat_states(optimizer, stage)
    find = _shard if stage == 3 else _slice
    fragments = {}
    for name, parameter in parameters.items():
        found = find(optimizer, parameter)
        if found is None:
            continue
        group, offset, start, numel, shape = found
        flat, state = states[group]
        live = {"weight": flat} | {key: v for key, v in state.items() if is_moment(v, flat)}
        fields = {key: tensor.detach()[offset : offset + numel] for key, tensor in live.items()}
        fragments[name] = Fragment(name, shape, start, fields)
    return fragments


def flat_states(optimizer: Any, stage: int) -> list[tuple[Tensor, Any]]:
    """The flat fp32 partitions with their optimizer state, which is made if need be."""
    flats = (
        optimizer.fp32_partitioned_groups_flat
        if stage == 3
        else optimizer.single_partition_of_fp32_groups
    )
    return [
        (flat, make_state(base, base.param_groups[group], flat))
        for flat, group, base in _with_groups(optimizer, flats, stage)
    ]


def _with_groups(
    optimizer: Any, flats: list[Tensor], stage: int
) -> Iterator[tuple[Tensor, int, torch.optim.Optimizer]]:
    for index, flat in enumerate(flats):
        group = optimizer.sub_group_to_group_id[index] if stage == 3 else index
        yield flat, group, optimizer.optimizer


Found = tuple[int, int, int, int, tuple[int, ...]]
"""index of the flat partition, offset in it; start in the parameter, elements, its whole shape"""


def _slice(optimizer: Any, parameter: Any) -> Found | None:
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    inner, outer = mapping.hp_fragment_address, mapping.lp_fragment_address
    shape = tuple(parameter.shape)
    return mapping.param_group_index, inner.start, outer.start, outer.numel, shape


def _shard(optimizer: Any, parameter: Any) -> Found | None:
    group, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = dist.get_rank() * count
    numel = min(count, parameter.ds_numel - start)  # the last ranks' parts end in padding
    if numel <= 0:
        return None
    return group, offset, start, numel, tuple(parameter.ds_shape)


@torch.no_grad()
def refresh_weights(optimizer: Any, stage: int) -> None:
    """Make the weights that the model computes with follow their fp32 masters. Collective."""
    if stage < 3:
        optimizer.update_lp_params()
        return
    optimizer._partition_all_parameters()
    for index in range(len(optimizer.fp32_partitioned_groups_flat)):
        optimizer._reassign_or_swap_out_partitioned_parameters(index)
    persistent = optimizer.persistent_parameters
    if persistent:  # small ones, which every rank keeps whole
        persistent[0].all_gather(persistent)


def scale_of(scaler: Any) -> LossScale:
    """DeepSpeed's dynamic loss scale as ours."""
    return LossScale(
        scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter, scaler.cur_hysteresis
    )


def is_smallest(scaler: Any) -> bool:
    """Whether one more overflow could not make the loss scale smaller."""
    return bool(scaler.cur_hysteresis == 1 and scaler.cur_scale == scaler.min_scale)


def set_scale(scaler: Any, scalars: Mapping[str, float]) -> None:
    """Write what `LossScale.scalars` gave; what is not there stays as the file says."""
    scale = LossScale.of(scale_of(scaler).scalars() | dict(scalars))
    scaler.cur_scale, scaler.cur_iter = scale.value, scale.steps
    scaler.last_overflow_iter, scaler.cur_hysteresis = scale.last_overflow, scale.hysteresis


def zero_storages(
    optimizer: Any, parameters: list[nn.Parameter], stage: int
) -> dict[str, list[Tensor]]:
    """Weights as the model computes with them, gradients in every form, buckets."""
    weights = tensors_in([(p.detach(), getattr(p, "ds_tensor", None)) for p in parameters])
    gradients: list[Any] = [p.grad for p in parameters]
    if stage == 0:
        return {"weights": weights, "gradients": tensors_in(gradients)}
    gradients += [flat.grad for flat, _ in flat_states(optimizer, stage)]
    gradients += [vars(optimizer).get(name) for name in GRADIENTS]
    gradients += [getattr(p, "grad_accum", None) for p in parameters]
    buckets: list[Any] = [bucket.buffer for bucket in optimizer.ipg_buckets.values()]
    buckets += [vars(optimizer).get(name) for name in BUCKETS]
    return {
        "weights": weights,
        "gradients": tensors_in(gradients),
        "buckets": tensors_in(buckets),
    }


GRADIENTS = (
    "averaged_gradients",
    "all_grad_tensors",
    "grad_partitions_flat_buffer",
    "accumulated_grads_in_cpu",
    "grads_in_partition",
)
"""where ZeRO optimizers keep gradients beside the parameters"""
BUCKETS = (
    "param_buffer_of_bit16_for_cpu_offload_groups",
    "temp_grad_buffer_for_cpu_offload",
    "temp_grad_buffer_for_gpu_offload",
    "param_groups_fp16_flat_cpu_memory",
)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a tensor, list or dict, however deep."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for inner in value for tensor in tensors_in(inner)]
    return []
