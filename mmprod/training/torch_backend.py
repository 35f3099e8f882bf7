"""Plain PyTorch on one device: AdamW or Muon on fp32 weights, fp32 or bf16 autocast.

The yardstick for the other backends.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mmprod.config.schema import TrainConfig
from mmprod.training.backend import Autocast, Outputs, named_weights, set_rate
from mmprod.training.distributed import World
from mmprod.training.optimizers import build_optimizers

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
        self._optimizers = build_optimizers(model, cfg)

    def forward(self, *batch: Tensor) -> Outputs:
        outputs: Outputs = self._model(*batch)
        return outputs

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        if torch.isfinite(norm):
            for optimizer in self._optimizers:
                set_rate(optimizer.param_groups, lr)
                optimizer.step()
        self._model.zero_grad(set_to_none=True)
        return float(norm)

    def weights(self) -> dict[str, Tensor]:
        return dict(named_weights(self._model))

    def gather(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu() for name, tensor in weights.items()}

    def save(self, folder: Path) -> None:
        optimizers = [optimizer.state_dict() for optimizer in self._optimizers]
        state = {"model": self._model.state_dict(), "optimizers": optimizers}
        torch.save(state, folder / FILE)

    def load(self, folder: Path) -> None:
        state = torch.load(folder / FILE, map_location="cpu", weights_only=True)
        self._model.load_state_dict(state["model"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
