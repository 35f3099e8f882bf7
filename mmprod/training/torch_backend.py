"""Plain PyTorch on one device: AdamW or Muon on fp32 weights, fp32, or autocast to bf16 or fp16.

The yardstick for the other backends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmprod.config.schema import TrainConfig
from mmprod.models.recompute import recompute_activations
from mmprod.training.backend import Autocast, Outputs, named_weights, set_rate
from mmprod.training.distributed import World
from mmprod.training.fragments import (
    Fragment,
    adam_steps,
    set_adam_steps,
    storages_of,
    whole_fragments,
)
from mmprod.training.loss_scale import LossScale
from mmprod.training.optimizers import build_optimizers


class TorchBackend:
    """One process, one device (see `Backend`)."""

    placement = "torch"
    accumulation = 1
    sharded = False

    def __init__(self, model: nn.Module, cfg: TrainConfig, world: World) -> None:
        device = world.device
        if cfg.activation_checkpointing:
            recompute_activations(model)
        self.scaled = cfg.precision == "fp16"
        self._scale = LossScale() if self.scaled else None
        self._model = Autocast(model, device.type, cfg.precision, cache=True).to(device)
        self._model.train()
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._clip = cfg.clip or float("inf")
        self._optimizers = build_optimizers(model, cfg)
        muon = any(isinstance(o, torch.optim.Muon) for o in self._optimizers)
        self.identity = f"{'muon' if muon else 'adamw'} fp32"
        self._fragments = whole_fragments(named_weights(self._model), self._optimizers)

    def forward(self, *batch: Tensor) -> Outputs:
        outputs: Outputs = self._model(*batch)
        return outputs

    def backward(self, loss: Tensor) -> None:
        scaled = loss if self._scale is None else loss * self._scale.value
        scaled.backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float) -> float:
        if self._scale is not None:
            for p in self._parameters:
                if p.grad is not None:
                    p.grad /= self._scale.value
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        finite = bool(torch.isfinite(norm))
        if self._scale is not None:
            self._scale.update(overflow=not finite)
        if finite:
            for optimizer in self._optimizers:
                set_rate(optimizer.param_groups, lr)
                optimizer.step()
        self._model.zero_grad(set_to_none=True)
        return float(norm)

    def skip(self) -> None:
        self._model.zero_grad(set_to_none=True)

    def fragments(self) -> dict[str, Fragment]:
        return self._fragments

    def weights(self) -> dict[str, Tensor]:
        return {name: fragment.fields["weight"] for name, fragment in self._fragments.items()}

    def scalars(self) -> dict[str, float]:
        scale = self._scale.scalars() if self._scale is not None else {}
        return {**adam_steps(self._states()), **scale}

    def restored(self, scalars: Mapping[str, float]) -> None:
        set_adam_steps(self._states(), scalars)
        if self._scale is not None:
            self._scale = LossScale.of(scalars)

    def _states(self) -> list[Any]:
        return [state for optimizer in self._optimizers for state in optimizer.state.values()]

    def storages(self) -> dict[str, list[Tensor]]:
        weights = list(self._model.parameters())
        gradients = [p.grad for p in weights if p.grad is not None]
        return {"weights": [*weights], "gradients": gradients, **storages_of(self._fragments)}

    def gather(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: parts[name].detach().view(fragment.shape).cpu()
            for name, fragment in self._fragments.items()
        }
