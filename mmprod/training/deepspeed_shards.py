"""Handing a model that was built in shards over to ZeRO 3, for DeepSpeed 0.19.

`deepspeed.zero.Init` gets whole parameters, broadcasts rank 0's and cuts them up. Here every rank
has its part already: each parameter is made whole for a moment, with only this rank's part in it,
and cut up without a broadcast. Peak: the shards and one parameter.
"""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from torch import nn

from mmprod.training.deepspeed_config import Resolved
from mmprod.training.sharded_build import ShardedBuild, own_parameters

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def hand_over(model: nn.Module, build: ShardedBuild, resolved: Resolved) -> None:
    """Replace the promised parameters of `model` by parameters of ZeRO 3, in their order."""
    dtype = DTYPES[resolved.weights]
    init: Any = deepspeed.zero.Init(config_dict_or_path=resolved.config, dtype=dtype)
    if init.mem_efficient_linear:
        init._enable_mem_efficient_linear()
    for module, name, promise in own_parameters(model):
        start, values = build.shard(promise)
        whole = torch.empty(promise.shape, dtype=dtype, device=init.local_device)
        whole.view(-1)[start : start + values.numel()].copy_(values)
        parameter: Any = nn.Parameter(whole, requires_grad=promise.requires_grad)
        setattr(module, name, parameter)
        build.forget(promise)
        init._convert_to_deepspeed_param(parameter)
        parameter.partition()
