"""DeepSpeed: ZeRO stages 0 to 3 on any number of ranks. The only file that imports deepspeed.

What DeepSpeed leaves open and this file closes: buffers are broadcast at the start (DeepSpeed
never does), stage 0 gets its gradient norm checked before the update, output of its compilers and
loggers goes to stderr, weights below stage 3 are whole on every rank and at stage 3 are this
rank's shards.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.cpp_extension import get_default_build_root

from mmprod.config.schema import TrainConfig
from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError
from mmprod.training.backend import Autocast, Outputs, named_weights, parameter_groups, set_rate
from mmprod.training.deepspeed_config import Resolved
from mmprod.training.distributed import World, broadcast_tensors

logger = logging.getLogger(__name__)

TAG = "deepspeed"


class DeepSpeedBackend:
    """A DeepSpeed engine behind the `Backend` seam.

    The process group exists already (see `distributed.join`).
    """

    def __init__(
        self, model: nn.Module, cfg: TrainConfig, resolved: Resolved, world: World
    ) -> None:
        _check_optimizer(cfg)
        self._world, self._stage = world, resolved.stage
        self.accumulation = resolved.accumulation
        self.sharded = resolved.stage == 3
        self.identity = (
            f"deepspeed zero-{resolved.stage} {'bf16' if resolved.bf16_weights else 'fp32'}"
        )
        # A cached bf16 copy of every weight would undo the sharding of stage 3.
        bf16 = cfg.precision == "bf16"
        wrapped = Autocast(model, world.device.type, bf16=bf16, cache=not self.sharded).to(
            world.device
        )
        wrapped.train()
        if resolved.offload:
            _check_offload()
        _leave_out_shared_memory_op()
        with _stdout_to_stderr():
            deepspeed.init_distributed(
                dist_backend=_backend_name(world), auto_mpi_discovery=False, verbose=False
            )
            self._engine, *_ = deepspeed.initialize(
                model=wrapped,
                model_parameters=parameter_groups(model, cfg),
                config=resolved.config,
                dist_init_required=False,
            )
        self._parameters = named_weights(self._engine.module)
        broadcast_tensors(world, list(self._engine.module.buffers()))

    def forward(self, *batch: Tensor) -> Outputs:
        outputs: Outputs = self._engine(*batch)
        return outputs

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()

    def step(self, lr: float) -> float:
        set_rate(self._engine.optimizer.param_groups, lr)
        if self._stage == 0:
            gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            if math.isfinite(norm):
                self._engine.step()
            return norm
        # Stages 1 to 3 leave the weights alone when the norm is not finite, and report infinity.
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def weights(self) -> dict[str, Tensor]:
        if not self.sharded:
            return dict(self._parameters)
        return {name: _sharded(p).ds_tensor for name, p in self._parameters.items()}

    @torch.no_grad()
    def gather(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        whole: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            if not self.sharded:
                if self._world.is_main:
                    whole[name] = tensor.detach().cpu()
                continue
            shard = tensor.detach().to(self._world.device).contiguous().flatten()
            parts = [torch.empty_like(shard) for _ in range(self._world.size)]
            dist.all_gather(parts, shard)
            if self._world.is_main:
                p = _sharded(self._parameters[name])
                whole[name] = torch.cat(parts)[: p.ds_numel].view(p.ds_shape).cpu()
        return whole

    def save(self, folder: Path) -> None:
        with _stdout_to_stderr():
            self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        with _stdout_to_stderr():
            found, _ = self._engine.load_checkpoint(str(folder), tag=TAG)
        if found is None:
            raise IntegrityError(
                f"{folder} holds no DeepSpeed state", hint="resume from another checkpoint"
            )


def _check_optimizer(cfg: TrainConfig) -> None:
    if cfg.optimizer == "muon":
        raise ConfigError(
            "optimizer = muon needs whole matrices, DeepSpeed's ZeRO flattens and divides them",
            hint='set optimizer = "auto" (adamw under DeepSpeed) or "adamw", e.g. '
            "-o fusion_train.optimizer=adamw",
        )
    if cfg.optimizer == "auto":
        logger.info("optimizer: adamw (auto: DeepSpeed does not keep matrices whole for muon)")


def _sharded(parameter: nn.Parameter) -> Any:
    """A parameter with the attributes that ZeRO-3 adds: ds_tensor (this rank's part), ds_numel,
    ds_shape.
    """
    return parameter


def _backend_name(world: World) -> str:
    return "nccl" if world.device.type == "cuda" else "gloo"


def _leave_out_shared_memory_op() -> None:
    """DeepSpeed would compile a CPU operator at start that only its inference uses.

    That takes a C++ compiler and up to minutes; a process killed meanwhile leaves a lock file for
    which every later one waits.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _check_offload() -> None:
    """Offload compiles DeepSpeed's CPU Adam at first use. Raises EnvironmentMissing."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise EnvironmentMissing(
            f"offload compiles DeepSpeed's CPU Adam, and there is no {compiler}",
            hint="install a C++ compiler, e.g. apt install g++, or use zero3.json",
        )
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in root.glob("**/cpu_adam/lock"):
        logger.warning("waiting while another process compiles; if none does, delete %s", lock)


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """DeepSpeed and its compilers print to stdout, which belongs to results.

    Acts on the file descriptor.
    """
    noisy = logging.getLogger("DeepSpeed")
    noisy.setLevel(logging.WARNING)
    for handler in noisy.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
