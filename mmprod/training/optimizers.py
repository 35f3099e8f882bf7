"""Which optimizer moves which weights.

Muon (Jordan et al. 2024) orthogonalises the update of each hidden matrix; everything else,
embeddings and vectors, stays with AdamW. On the fusion transformer it needs well under half of
AdamW's steps (docs/adr/0009). It needs whole matrices, which ZeRO does not keep, so `auto` means
Muon on one process and AdamW under DeepSpeed.
"""

from __future__ import annotations

import logging

import torch
from torch import nn

from mmprod.config.schema import TrainConfig
from mmprod.errors import ConfigError
from mmprod.models.hidden import SMALLEST_SIDE, hidden_matrices
from mmprod.training.backend import parameter_groups

logger = logging.getLogger(__name__)

MOMENTUM = 0.95


def build_optimizers(model: nn.Module, cfg: TrainConfig) -> list[torch.optim.Optimizer]:
    """The optimizers of one process, to be stepped together; one learning rate serves both (updates
    of equal RMS).

    Raises ConfigError when Muon is asked for and has nothing to move.
    """
    hidden = _for_muon(model, cfg.optimizer) if cfg.optimizer in ("auto", "muon") else []
    taken = {id(p) for p in hidden}
    groups = [
        {**group, "params": [p for p in group["params"] if id(p) not in taken]}
        for group in parameter_groups(model, cfg)
    ]
    groups = [group for group in groups if group["params"]]
    optimizers: list[torch.optim.Optimizer] = []
    if groups:
        optimizers.append(torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True))
    if hidden:
        optimizers.append(
            torch.optim.Muon(
                hidden,
                lr=cfg.lr,
                weight_decay=cfg.weight_decay,
                momentum=MOMENTUM,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def _for_muon(model: nn.Module, asked: str) -> list[torch.Tensor]:
    hidden = hidden_matrices(model)
    if asked == "muon" and not hidden:
        raise ConfigError(
            "optimizer = muon: no linear layer that trains has both sides of at least "
            f"{SMALLEST_SIDE}, so muon would move nothing",
            hint='set optimizer = "adamw", or "auto", which takes muon where it has a use',
        )
    matrices = sum(p.requires_grad and p.ndim >= 2 for p in model.parameters())
    logger.info(
        "optimizer %s: muon moves %d of %d matrices, adamw the rest", asked, len(hidden), matrices
    )
    return hidden
