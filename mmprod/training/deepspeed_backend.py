"""DeepSpeed: ZeRO stages 0 to 3 on any number of ranks.

Only this file and deepspeed_shards.py import deepspeed. What it leaves open and this file closes:
buffers are broadcast at the start (DeepSpeed never does), stage 0 gets its gradient norm checked
before the update, an overflow at the smallest loss scale is an error with a hint, output of its
compilers and loggers goes to stderr.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor, nn
from torch.utils.cpp_extension import get_default_build_root

from mmprod.config.schema import TrainConfig
from mmprod.errors import ConfigError, EnvironmentMissing
from mmprod.models.recompute import recompute_activations
from mmprod.training.backend import Autocast, Outputs, named_weights, parameter_groups, set_rate
from mmprod.training.deepspeed_config import Resolved
from mmprod.training.deepspeed_fragments import (
    is_smallest,
    partitioned_fragments,
    refresh_weights,
    scale_of,
    set_scale,
    zero_storages,
)
from mmprod.training.deepspeed_shards import hand_over
from mmprod.training.distributed import World, broadcast_tensors
from mmprod.training.fragments import (
    ADAM_STEP,
    Fragment,
    Layout,
    adam_steps,
    set_adam_steps,
    storages_of,
    whole_fragments,
)
from mmprod.training.loss_scale import overflow_error
from mmprod.training.sharded_build import Build, ShardedBuild

logger = logging.getLogger(__name__)

RETIRED_NAMES = (
    r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"
)


class DeepSpeedBackend:
    """A DeepSpeed engine behind the `Backend` seam.

    The process group exists already (see `distributed.join`).
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: TrainConfig,
        resolved: Resolved,
        world: World,
        build: Build | None = None,
    ) -> None:
        _check_optimizer(cfg)
        self._world, self._stage = world, resolved.stage
        self.accumulation = resolved.accumulation
        self.sharded = resolved.stage > 0
        self.scaled = False
        self.identity = f"adamw {resolved.weights}"
        self.placement = f"zero-{resolved.stage}"
        if cfg.activation_checkpointing:
            recompute_activations(model)
        # A cached copy of every weight in bf16 would undo the sharding of stage 3.
        cache = resolved.stage < 3
        wrapped = Autocast(model, world.device.type, cfg.precision, cache=cache)
        _check_kind(resolved.weights)
        if resolved.offload:
            _check_offload()
        _leave_out_shared_memory_op()
        # DeepSpeed 0.19 calls collectives by names that torch 2.13 is retiring.
        warnings.filterwarnings("ignore", RETIRED_NAMES, FutureWarning)
        with _stdout_to_stderr():
            deepspeed.init_distributed(
                dist_backend=_backend_name(world), auto_mpi_discovery=False, verbose=False
            )
            if isinstance(build, ShardedBuild):
                hand_over(model, build, resolved)
            self._engine, *_ = deepspeed.initialize(
                model=wrapped.to(world.device).train(),
                model_parameters=parameter_groups(model, cfg),
                config=resolved.config,
                dist_init_required=False,
            )
        self._scaler: Any = getattr(self._engine.optimizer, "loss_scaler", None)
        self.scaled = self._scaler is not None and bool(self._scaler.dynamic)
        if self._scaler is not None:
            self._scaler.raise_error_at_min_scale = False  # an error of ours: see `step`
        self._parameters = named_weights(self._engine.module)
        broadcast_tensors(world, list(self._engine.module.buffers()))
        self._fragments = self._find_fragments()
        self._layout = Layout(self._fragments, world) if self.sharded else None

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
        smallest = self.scaled and is_smallest(self._scaler)
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if smallest and not math.isfinite(norm):
            raise overflow_error(self._scaler.cur_scale)
        return norm

    def skip(self) -> None:
        with _without_update(self._engine.optimizer, self._stage):
            self._engine.step()

    def fragments(self) -> dict[str, Fragment]:
        return self._fragments

    def _find_fragments(self) -> dict[str, Fragment]:
        optimizer, parameters = self._engine.optimizer, self._parameters
        if self._stage == 0:
            return whole_fragments(parameters, [optimizer])
        return partitioned_fragments(optimizer, parameters, self._stage)

    def weights(self) -> dict[str, Tensor]:
        return {name: fragment.fields["weight"] for name, fragment in self._fragments.items()}

    def scalars(self) -> dict[str, float]:
        scale = scale_of(self._scaler).scalars() if self.scaled else {}
        return {**adam_steps(self._states()), **scale}

    def restored(self, scalars: Mapping[str, float]) -> None:
        set_adam_steps(self._states(), scalars)
        if self.scaled:
            set_scale(self._scaler, scalars)
        if self._stage > 0:
            refresh_weights(self._engine.optimizer, self._stage)
        self._engine.global_steps = int(scalars[ADAM_STEP])

    def _states(self) -> list[Any]:
        return list(self._engine.optimizer.state.values())

    def storages(self) -> dict[str, list[Tensor]]:
        weights = list(self._engine.module.parameters())
        own = storages_of(self._fragments)
        found = zero_storages(self._engine.optimizer, weights, self._stage)
        return {**own, **found}

    def gather(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._layout is not None:
            return self._layout.gather(parts)
        if not self._world.is_main:
            return {}
        return {
            name: parts[name].detach().view(fragment.shape).cpu()
            for name, fragment in self._fragments.items()
        }


def _check_optimizer(cfg: TrainConfig) -> None:
    if cfg.optimizer == "muon":
        raise ConfigError(
            "optimizer = muon needs whole matrices, DeepSpeed's ZeRO flattens and divides them",
            hint='set optimizer = "auto" (adamw under DeepSpeed) or "adamw", e.g. '
            "-o fusion_train.optimizer=adamw",
        )
    if cfg.optimizer == "auto":
        logger.info("optimizer: adamw (auto: DeepSpeed does not keep matrices whole for muon)")


@contextlib.contextmanager
def _without_update(optimizer: Any, stage: int) -> Iterator[None]:
    """The next step takes the way DeepSpeed has for overflowed gradients: they are dropped, nothing
    is updated. The loss scale stays as it is.
    """

    def overflow(*_: Any, **__: Any) -> bool:
        optimizer.overflow = True
        return True

    def nothing(*_: Any, **__: Any) -> None:
        pass

    replaced: dict[str, Any] = {"_update_scale": nothing}
    if stage == 0:
        replaced = {"step": nothing}
    elif stage == 3:
        replaced["_overflow_check_and_loss_scale_update"] = overflow
    else:
        replaced |= {"check_grad_overflow": True, "check_overflow": overflow}
    before = {name: vars(optimizer)[name] for name in replaced if name in vars(optimizer)}
    vars(optimizer).update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            vars(optimizer).pop(name)
        vars(optimizer).update(before)


def _backend_name(world: World) -> str:
    return "nccl" if world.device.type == "cuda" else "gloo"


def _leave_out_shared_memory_op() -> None:
    """DeepSpeed would compile a CPU operator at start that only its inference uses.

    That takes a C++ compiler and up to minutes; a process killed meanwhile leaves a lock file for
    which every later one waits.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _check_kind(weights: str) -> None:
    """DeepSpeed refuses kinds of weights that a device is slow at. Raises EnvironmentMissing."""
    device = get_accelerator()
    if weights == "fp16" and not device.is_fp16_supported():
        raise EnvironmentMissing(
            f"this {device.device_name()} does not compute in fp16",
            hint='use precision = "bf16" or "fp32"',
        )


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
