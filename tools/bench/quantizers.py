"""Quantizer forward, backward and codebook update: 4,096 vectors, D 8, K 16384.

Ours includes `update`, which runs after the optimizer step; lucidrains' moves its codes inside the
forward pass (decay 0.99, codes used by fewer than 2 restart); diffusers' codes are a parameter, so
it has the gradient and no update.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmprod.models.quantizers.book import Rules
from mmprod.models.quantizers.euclid import EuclidQuantizer
from mmprod.models.quantizers.spherical import SphericalQuantizer
from tools.bench.measure import Row, Work, best_times, faster, memory_of

CODES, DIM = 16_384, 8
SHAPE = (64, DIM, 8, 8)
ROOM = 100.0
"""MiB"""


def spherical() -> Work:
    return _ours(SphericalQuantizer(CODES, DIM, Rules(0.99, True, unit=True), commitment=0.25))


def euclid() -> Work:
    return _ours(EuclidQuantizer(CODES, DIM, Rules(0.99, True, unit=False), commitment=0.25))


def _ours(quantizer: SphericalQuantizer | EuclidQuantizer) -> Work:
    quantizer.train()

    def outputs(z: Tensor) -> tuple[Tensor, Tensor]:
        found = quantizer(z)
        return found.latents, found.encoder_loss

    return _step(outputs, quantizer.update)


def diffusers() -> Work:
    from diffusers.models.autoencoders.vae import VectorQuantizer

    quantizer = VectorQuantizer(CODES, DIM, beta=0.25, legacy=False).train()

    def outputs(z: Tensor) -> tuple[Tensor, Tensor]:
        latents, loss, _ = quantizer(z)
        return latents, loss

    return _step(outputs, lambda: quantizer.zero_grad(set_to_none=True))


def lucidrains_cosine() -> Work:
    return _lucidrains(cosine=True)


def lucidrains_euclid() -> Work:
    return _lucidrains(cosine=False)


def _lucidrains(*, cosine: bool) -> Work:
    from vector_quantize_pytorch import VectorQuantize

    quantizer: nn.Module = VectorQuantize(
        dim=DIM,
        codebook_size=CODES,
        decay=0.99,
        commitment_weight=0.25,
        threshold_ema_dead_code=2,
        use_cosine_sim=cosine,
        accept_image_fmap=True,
    ).train()

    def outputs(z: Tensor) -> tuple[Tensor, Tensor]:
        latents, _, loss = quantizer(z)
        return latents, loss.sum()

    return _step(outputs, lambda: None)


def _step(outputs: Callable[[Tensor], tuple[Tensor, Tensor]], after: Work) -> Work:
    """Forward, backward to the latents, then `after`."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(SHAPE, generator=generator)
    weights = torch.randn(SHAPE, generator=generator)

    def step() -> None:
        latent = z.clone().requires_grad_()
        latents, loss = outputs(latent)
        ((latents * weights).sum() + loss).backward()
        if latent.grad is None:
            raise RuntimeError("no gradient reached the latents")
        after()

    return step


QUANTIZERS: dict[str, Callable[[], Work]] = {
    "spherical": spherical,
    "euclid": euclid,
    "diffusers": diffusers,
    "lucidrains cosine": lucidrains_cosine,
    "lucidrains Euclid": lucidrains_euclid,
}


def rows(rounds: int) -> list[Row]:
    """Times against each peer, then extra memory."""
    seconds = best_times({name: build() for name, build in QUANTIZERS.items()}, rounds)
    memory = {name: memory_of(name) for name in QUANTIZERS}
    pairs = (
        ("spherical", "diffusers", 3.0),
        ("spherical", "lucidrains cosine", 6.0),
        ("euclid", "lucidrains Euclid", 6.0),
        ("euclid", "diffusers", 3.0),
    )
    found = [
        faster(f"quantizer, {own}", seconds[own], peer, seconds[peer], at_least)
        for own, peer, at_least in pairs
    ]
    for own, peer, _ in pairs:
        room, met = f"<= {ROOM:g} MiB", memory[own] <= ROOM
        what = f"its extra memory, {own}"
        found.append(Row(what, memory[own], peer, memory[peer], "MiB", room, met))
    return found
