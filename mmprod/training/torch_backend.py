"""Plain PyTorch on one device: AdamW on fp32 weights, fp32 or bf16 autocast.

The yardstick for the other backends.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mmprod.config.schema import TrainConfig
from mmprod.training.backend import Autocast, Losses, named_weights, parameter_groups, set_rate
from mmprod.training.distributed import World

FILE = "torch.pt"


class TorchBackend:
    """One process, one device (see `Backend`)."""

    identity = "torch"
    accumulation = 1
    sharded = False

    def __init__(self, model: nn.Module, cfg: TrainConfig, world: World) -> None:
        device = world.device
        self._model = Autocast(model, device.type, bf16=cfg.precision == "bf16", cache=True).to(
            device
        )
        self._model.train()
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._clip = cfg.clip or float("inf")
        self._optimizer = torch.optim.AdamW(
            parameter_groups(model, cfg), lr=cfg.lr, betas=cfg.betas, fused=True
        )

    def forward(self, *batch: Tensor) -> Losses:
        losses: Losses = self._model(*batch)
        return losses

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        if torch.isfinite(norm):
            set_rate(self._optimizer.param_groups, lr)
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def weights(self) -> dict[str, Tensor]:
        return dict(named_weights(self._model))

    def gather(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu() for name, tensor in weights.items()}

    def save(self, folder: Path) -> None:
        state = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}
        torch.save(state, folder / FILE)

    def load(self, folder: Path) -> None:
        state = torch.load(folder / FILE, map_location="cpu", weights_only=True)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
