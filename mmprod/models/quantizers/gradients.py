"""How the gradient of the latents reaches the encoder: both ways give exactly the code in value.

straight  VQ-VAE (van den Oord et al. 2017, sec. 3.2): the gradient is copied.
rotation  Fifty et al. 2024 (sec. 4): the gradient is turned and scaled as the latent is turned and
          scaled onto its code, so that latents of one cell get different gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Gradient = Callable[[Tensor, Tensor], Tensor]

SMALLEST = 1e-4
"""length of z, q and z' + q' below which a rotation would amplify rounding errors"""


def straight_through(z: Tensor, chosen: Tensor) -> Tensor:
    """z, chosen (n, D) -> chosen in value, the gradient of z."""
    return chosen.detach() + (z - z.detach())


def rotation(z: Tensor, chosen: Tensor) -> Tensor:
    """z, chosen (n, D) -> chosen in value, the gradient of |q|/|z| R z with R the rotation from z
    to q, itself constant: R = I - 2 r r^T + 2 q' z'^T, r the unit vector between z' and q'.

    Where there is no such rotation (a vector of length 0, opposite directions) the gradient is
    copied, as `straight_through` does.
    """
    with torch.no_grad():
        from_, to = F.normalize(z, dim=-1), F.normalize(chosen, dim=-1)
        lengths = [x.norm(dim=-1, keepdim=True) for x in (z, chosen, from_ + to)]
        turns = torch.stack(lengths).amin(0) > SMALLEST
        between = F.normalize(from_ + to, dim=-1) * turns
        to = to * turns
        scale = torch.where(turns, lengths[1] / lengths[0], 1.0)
    turned = (
        z
        - 2 * between * (between * z).sum(-1, keepdim=True)
        + 2 * to * (from_ * z).sum(-1, keepdim=True)
    )
    return straight_through(scale * turned, chosen)


GRADIENTS: dict[str, Gradient] = {"straight": straight_through, "rotation": rotation}
