"""The matrices that Muon moves: told from the model alone, so that a plan knows them too."""

from __future__ import annotations

from torch import Tensor, nn

SMALLEST_SIDE = 32
"""a linear map with a side below this is no hidden matrix and stays with AdamW"""


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """Weights of linear layers that train, with both sides of hidden size."""
    return [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear)
        and module.weight.requires_grad
        and min(module.weight.shape) >= SMALLEST_SIDE
    ]
