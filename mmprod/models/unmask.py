"""One step of masked-diffusion sampling, as modules: the same code runs in PyTorch and inside every
exported graph.

Static shapes, no sort, no top-k, no random operator. Three devices make that possible:
- pictures are unmasked in a fixed low-discrepancy order (Halton-MaskGIT, Besnier et al. 2025), so
  the places of a step are constants;
- a draw is an inverse CDF of one uniform number that enters as an input, so every backend sees the
  same randomness and the noise is T x N floats instead of T x N x K for Gumbel noise;
- texts are unmasked where the model is certain (as in Fast-dLLM, Wu et al. 2025), and else from the
  left, few places at first. The first words settle language and order of what follows, which the
  most confident places, the padding, do not; and only probabilities near one number, not their
  order, can part two backends.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprod.config.schema import Dims, SamplerConfig
from mmprod.models.order import BELOW_ONE, CERTAIN, halton_ranks, image_bounds, text_shares


def draw_weights(logits: Tensor, temperature: float, min_probability: float) -> Tensor:
    """logits (B, S, K) float32 -> how likely each id is drawn, against the likeliest: (B, S, K).

    Ids whose probability is below `min_probability` times the largest are never drawn (min-p,
    Nguyen et al. 2024); besides quality this leaves few borders in the CDF, so backends that differ
    in the last bit still draw the same id.
    """
    weight = torch.exp((logits - logits.amax(-1, keepdim=True)) * (1 / temperature))
    return torch.where(weight < min_probability, torch.zeros_like(weight), weight)


def draw(logits: Tensor, uniform: Tensor, temperature: float, min_probability: float) -> Tensor:
    """Inverse-CDF draw. logits (B, S, K) float32, uniform (B, S) in [0, 1) -> ids (B, S) int32."""
    weight = draw_weights(logits, temperature, min_probability)
    cumulative = torch.cumsum(weight, dim=-1)
    threshold = uniform * cumulative[..., -1] * BELOW_ONE
    return (cumulative <= threshold[..., None]).to(torch.int32).sum(-1, dtype=torch.int32)


def guided(given: Tensor, free: Tensor, weight: Tensor) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6): free + (1 + w)(given - free), where
    `weight` is 1 + w.
    """
    return free + weight * (given - free)


class ImageUnmask(nn.Module):
    """Guidance, draw, and the fixed places of a step, those that are known already left out."""

    ranks: Tensor
    bounds: Tensor
    guidance: Tensor

    def __init__(self, dims: Dims, sampler: SamplerConfig) -> None:
        super().__init__()
        steps, self.mask_id = sampler.image_steps, dims.codebook_size
        self.temperature, self.min_probability = sampler.image_temperature, sampler.min_probability
        ranks = torch.tensor(halton_ranks(dims.grid, dims.planes), dtype=torch.int32)
        self.register_buffer("ranks", ranks, persistent=False)
        bounds = torch.tensor(image_bounds(dims.positions, steps), dtype=torch.int32)
        self.register_buffer("bounds", bounds, persistent=False)
        ramp = torch.arange(1, steps + 1, dtype=torch.float32) / steps
        self.register_buffer("guidance", sampler.guidance * ramp, persistent=False)

    def forward(
        self, step: Tensor, given: Tensor, free: Tensor, codes: Tensor, noise: Tensor
    ) -> Tensor:
        """step (1,) int64; given, free (B, N, K) logits with and without the condition; codes (B,
        N) int32; noise (B, T, N) -> codes (B, N) int32 with the masked places of this step filled
        in.
        """
        weight = 1 + self.guidance.index_select(0, step)
        return self.unguided(step, guided(given, free, weight), codes, noise)

    def unguided(self, step: Tensor, logits: Tensor, codes: Tensor, noise: Tensor) -> Tensor:
        """As `forward`, of one set of logits: for a sampler whose guidance is 0."""
        uniform = noise.index_select(1, step)[:, 0]
        drawn = draw(logits, uniform, self.temperature, self.min_probability)
        low, high = self.bounds.index_select(0, step), self.bounds.index_select(0, step + 1)
        chosen = (self.ranks >= low) & (self.ranks < high) & (codes == self.mask_id)
        return torch.where(chosen, drawn, codes)


class TextUnmask(nn.Module):
    """Draw; every place that is certain, and of the others some on the left."""

    before: Tensor
    shares: Tensor

    def __init__(self, dims: Dims, sampler: SamplerConfig) -> None:
        super().__init__()
        self.mask_id = dims.vocabulary
        self.temperature, self.min_probability = sampler.text_temperature, sampler.min_probability
        place = torch.arange(dims.text_length)
        self.register_buffer("before", place < place[:, None], persistent=False)
        shares = torch.tensor(text_shares(sampler.text_steps), dtype=torch.int32)
        self.register_buffer("shares", shares, persistent=False)

    def forward(self, step: Tensor, logits: Tensor, tokens: Tensor, noise: Tensor) -> Tensor:
        """step (1,) int64; logits (B, L, V); tokens (B, L) int32; noise (B, T, L) -> tokens (B, L)
        int32.
        """
        uniform = noise.index_select(1, step)[:, 0]
        drawn = draw(logits, uniform, self.temperature, self.min_probability)
        confidence = 1 / torch.exp(logits - logits.amax(-1, keepdim=True)).sum(-1)
        masked = tokens == self.mask_id
        certain = masked & (confidence >= CERTAIN)
        unsure = masked & ~certain
        rank = (unsure[:, None, :] & self.before).to(torch.int32).sum(-1, dtype=torch.int32)
        count = unsure.to(torch.int32).sum(-1, keepdim=True, dtype=torch.int32)
        share = self.shares.index_select(0, step)
        first = unsure & (rank * share[:, 1:] < count * share[:, :1])
        return torch.where(certain | first, drawn, tokens)


class JointUnmask(nn.Module):
    """The two of them side by side, with as many steps for the text as for the picture.

    There is no forward pass: a sampler calls the parts, with what it computes between them.
    """

    def __init__(self, dims: Dims, sampler: SamplerConfig) -> None:
        super().__init__()
        together = sampler.model_copy(update={"text_steps": sampler.image_steps})
        self.image = ImageUnmask(dims, together)
        self.text = TextUnmask(dims, together)
