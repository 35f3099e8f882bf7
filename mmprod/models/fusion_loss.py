"""The training objective of the fusion transformer, in the design's three terms.

    L_total          = L_encoder + L_cross-modal + L_reconstruction
    L_encoder        : masked likelihood of one modality while the other is wholly masked
    L_cross-modal    : masked likelihood of one modality given the other clean, both ways,
                       + SigLIP between the towers
    L_reconstruction : masked likelihood of both, each masked at its own ratio

Every cross-entropy is divided by ln(vocabulary), so an untrained model starts near 1 in each. A
sample belongs to one task, drawn with the shares of `TASKS`; each sample's loss is a mean over its
own masked places, so the loss of a global batch is the plain mean over samples and does not depend
on how ranks share them.

Sources: MaskGIT (Chang et al. 2022, sec. 3.1), UniDisc (Swerdlow et al. 2025: whole-modality
masking), SigLIP (Zhai et al. 2023, eq. 1) on partly masked inputs (FLIP, Li et al. 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprod.config.schema import Dims, FusionConfig
from mmprod.models.contrast import Neighbours, Seen, around_the_ring, within_groups
from mmprod.models.fusion import Fusion
from mmprod.models.head import cross_entropy, of_places

TASKS = {"image": 0.06, "text": 0.04, "text_to_image": 0.45, "image_to_text": 0.30, "joint": 0.15}
"""share of samples per task, in the order of the cumulative draw"""
MEAN_ARCCOS = 2 / math.pi
PAD = 0


def draw_noise(generator: torch.Generator, batch: int, dims: Dims) -> Tensor:
    """All random numbers of one step for a global batch: (B, 3 + N + L) uniform in [0, 1), task and
    ratios stratified.
    """
    noise = torch.rand(batch, 3 + dims.positions + dims.text_length, generator=generator)
    for column in range(3):
        order = torch.randperm(batch, generator=generator)
        noise[:, column] = (order + noise[:, column]) / batch
    return noise


@dataclass(frozen=True)
class Masked:
    """One modality after masking: ids with mask ids, the mask (B, S), the loss weight of each
    sample (B,).
    """

    ids: Tensor
    mask: Tensor
    ratio: Tensor


@dataclass(frozen=True)
class Plan:
    """What each sample of a batch is asked: its task (B,), both modalities after masking, and the
    probabilities (B, N, K) that a student shall come to, where there is a teacher.
    """

    task: Tensor
    image: Masked
    text: Masked
    target: Tensor | None = None


class FusionObjective(nn.Module):
    """Wraps the model so that one forward gives all losses (what a wrapping engine needs)."""

    def __init__(self, fusion: Fusion, cfg: FusionConfig, dims: Dims) -> None:
        super().__init__()
        self.fusion = fusion
        self.cfg, self.dims = cfg, dims
        self.neighbours = Neighbours()

    def forward(self, codes: Tensor, tokens: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """codes (B, N), tokens (B, L) integer, noise from `draw_noise` -> scalar losses; a pure
        function of its inputs.
        """
        return self.losses(codes, tokens, self.plan(codes, tokens, noise))

    def plan(self, codes: Tensor, tokens: Tensor, noise: Tensor) -> Plan:
        """Tasks and masks of a batch."""
        n = self.dims.positions
        edges = torch.cumsum(torch.tensor(list(TASKS.values()), device=noise.device), 0)
        task = (noise[:, :1] > edges[:-1]).sum(1)
        image_ratio = torch.arccos(noise[:, 1]) * MEAN_ARCCOS
        text_ratio = 1 - noise[:, 2]
        ones, zeros = torch.ones_like(text_ratio), torch.zeros_like(text_ratio)
        image_ratio = torch.where(task == 1, ones, torch.where(task == 3, zeros, image_ratio))
        text_ratio = torch.where(task == 0, ones, torch.where(task == 2, zeros, text_ratio))
        image = _mask(codes, noise[:, 3 : 3 + n], image_ratio, self.dims.codebook_size)
        text = _mask(tokens, noise[:, 3 + n :], text_ratio, self.dims.vocabulary)
        return Plan(task, image, text)

    def losses(self, codes: Tensor, tokens: Tensor, plan: Plan) -> dict[str, Tensor]:
        """The terms of the loss, and readouts."""
        task, image, text = plan.task, plan.image, plan.text
        image_features, text_features = (
            self.fusion.image.encode(image.ids),
            self.fusion.text.encode(text.ids),
        )
        fused_image, fused_text = self.fusion.fuse(image_features, text_features)
        image_loss = self.image_losses(self.fusion.image.decode_features(fused_image), codes, plan)
        words = self.fusion.text.decode_features(fused_text)
        surprise = of_places(self.fusion.text, words, cross_entropy, (tokens,))
        text_loss = self._likelihood(surprise, tokens, text, 0.5, pad=True)
        image_loss = image_loss * (task != 1)
        text_loss = text_loss * (task != 0) * self.cfg.text_weight
        contrast = self._contrast(image_features, text_features, image.ratio, text.ratio)
        both = image_loss + text_loss
        encoder = (both * (task < 2)).mean()
        cross = (both * ((task == 2) | (task == 3))).mean() + self.cfg.contrastive_weight * contrast
        reconstruction = (both * (task == 4)).mean()
        return {
            "loss": encoder + cross + reconstruction,
            "encoder": encoder,
            "cross_modal": cross,
            "reconstruction": reconstruction,
            "contrastive": contrast,
            "text_to_image": _mean_where(image_loss, task == 2),
            "image_to_text": _mean_where(text_loss, task == 3),
        }

    def image_losses(self, features: Tensor, codes: Tensor, plan: Plan) -> Tensor:
        """The loss of each sample's picture (B,), from what the head reads (B, N, D)."""
        surprise = of_places(self.fusion.image, features, cross_entropy, (codes,))
        return self._likelihood(surprise, codes, plan.image, MEAN_ARCCOS)

    def _likelihood(
        self, surprise: Tensor, target: Tensor, masked: Masked, mean_ratio: float, pad: bool = False
    ) -> Tensor:
        """Cross-entropy of each place (B, S) in units of ln(vocabulary) -> over masked ones: (B,).

        The mean over a sample's masked places, weighted by its ratio against the mean ratio: over a
        batch each masked place counts alike, as in MaskGIT.
        """
        weight = masked.mask.float()
        if pad:
            after_end = F.pad((target == PAD)[:, 1:], (1, 0)) & (target == PAD)
            weight = torch.where(after_end, weight * self.cfg.pad_weight, weight)
        per_sample = (surprise * weight).sum(1) / weight.sum(1).clamp_min(1e-6)
        return per_sample * masked.ratio / mean_ratio

    def _contrast(
        self, image: Tensor, text: Tensor, image_ratio: Tensor, text_ratio: Tensor
    ) -> Tensor:
        """SigLIP between what the towers give, by how much they saw."""
        a = Seen(self.fusion.image.embedding(image), 1 - image_ratio)
        b = Seen(self.fusion.text.embedding(text), 1 - text_ratio)
        scale, bias = self.fusion.similarity[0].exp(), self.fusion.similarity[1]
        if self.cfg.contrast == "groups":
            return within_groups(a, b, scale, bias)
        neighbours = self.neighbours if self.training else Neighbours()
        return around_the_ring(a, b, scale, bias, neighbours)


def _mask(ids: Tensor, noise: Tensor, ratio: Tensor, mask_id: int) -> Masked:
    """Mask a share `ratio` of each row (at least one place where ratio > 0): the places of smallest
    noise.
    """
    length = ids.shape[1]
    count = torch.ceil(ratio * length)
    rank = noise.argsort(1).argsort(1)
    mask = rank < count[:, None]
    return Masked(torch.where(mask, mask_id, ids.long()), mask, ratio)


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of `values` over the chosen samples (a readout, not a loss)."""
    return (values.detach() * chosen).sum() / chosen.sum().clamp_min(1)
