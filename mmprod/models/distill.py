"""Fewer sampling steps: a student learns to draw in one step what its teacher draws in several.

    some codes known --teacher, k guided steps--> what each newly filled place was drawn from
                     --student, one step alone--> the same, by Kullback-Leibler divergence

Self-distillation through time (SDTT, Deschenaux and Gulcehre 2025, sec. 3) for a sampler that fills
places in a fixed order: every place has one teacher step that fills it, and the target is the very
distribution that this step draws from, with guidance, temperature and min-p. So guidance moves into
the student's weights (Meng et al. 2023) and its sampler asks the model once per step, not twice.
Between its steps the teacher draws, and its randomness enters as an input, as everywhere.

The student still draws the places of one step independently of each other: no loss over places one
by one can teach it how they belong together (Di4C, Hayakawa et al. 2024, which adds a latent for
that). All other tasks of the objective go on as they are, so captions, search and joint drawing are
kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprod.config.schema import Dims, FusionConfig, SamplerConfig
from mmprod.models.fusion import Fusion
from mmprod.models.fusion_loss import MEAN_ARCCOS, FusionObjective, Masked, Plan
from mmprod.models.head import cross_entropy, of_places
from mmprod.models.order import halton_ranks, image_bounds
from mmprod.models.unmask import draw, draw_weights, guided

TAUGHT = 2
"""the task of the objective that the teacher takes over: text -> image"""
KEPT = 0.25
"""share of samples in which places beyond the order are known, too, as when a picture is edited"""


def draw_teaching_noise(
    generator: torch.Generator, batch: int, dims: Dims, steps: tuple[int, int]
) -> Tensor:
    """All random numbers of the lessons of a global batch: (B, 2 + N + k N) uniform in [0, 1), the
    step stratified (which may round up to 1). `steps`: of teacher and student, k times as many
    of the one as of the other.
    """
    turns = steps[0] // steps[1]
    noise = torch.rand(batch, 2 + (1 + turns) * dims.positions, generator=generator)
    noise[:, 0] = (torch.randperm(batch, generator=generator) + noise[:, 0]) / batch
    return noise


@dataclass(frozen=True)
class Lesson:
    """What the student is shown and asked: codes with mask ids (B, N), and the teacher's
    probabilities (B, N, K) at the places of its step, zero elsewhere.
    """

    state: Tensor
    target: Tensor


class Teacher(nn.Module):
    """A trained model with its sampler, asked for `steps` of a student."""

    ranks: Tensor
    bounds: Tensor
    finer: Tensor

    def __init__(self, fusion: Fusion, dims: Dims, sampler: SamplerConfig, steps: int) -> None:
        """`sampler`: the teacher's; its `image_steps` are a multiple of `steps`."""
        super().__init__()
        self.fusion, self.dims, self.sampler, self.steps = fusion, dims, sampler, steps
        self.turns = sampler.image_steps // steps
        ranks = torch.tensor(halton_ranks(dims.grid, dims.planes))
        self.register_buffer("ranks", ranks, persistent=False)
        bounds = torch.tensor(image_bounds(dims.positions, steps))
        self.register_buffer("bounds", bounds, persistent=False)
        finer = torch.tensor(image_bounds(dims.positions, sampler.image_steps))
        self.register_buffer("finer", finer, persistent=False)

    @torch.no_grad()
    def forward(self, codes: Tensor, tokens: Tensor, noise: Tensor) -> Lesson:
        """codes (B, N) of real pictures, tokens (B, L), noise of `draw_teaching_noise`."""
        mask_id, n = self.dims.codebook_size, self.dims.positions
        # Stratified numbers may round up to 1.
        step = (noise[:, 0] * self.steps).long().clamp_max(self.steps - 1)
        low, high = self.bounds[step, None], self.bounds[step + 1, None]
        # The first KEPT of the second column gives the share of other places, the rest keeps none.
        kept = noise[:, 2 : 2 + n] < (1 - noise[:, 1:2] / KEPT)
        state = torch.where((self.ranks < low) | kept, codes.long(), mask_id)
        places = (self.ranks < high) & (state == mask_id)
        given = self.fusion.text.encode(tokens)
        free = self.fusion.text.encode(torch.full_like(tokens, self.dims.vocabulary))
        target = torch.zeros(*codes.shape, mask_id, device=codes.device)
        known = state
        for turn in range(self.turns):
            weight = self._drawn_from(known, given, free, step * self.turns + turn)
            due = places & (known == mask_id)
            if turn + 1 < self.turns:
                due = due & (self.ranks < self.finer[step * self.turns + turn + 1, None])
            target = torch.where(due[..., None], weight / weight.sum(-1, keepdim=True), target)
            uniform = noise[:, 2 + (1 + turn) * n : 2 + (2 + turn) * n]
            drawn = draw(weight.log(), uniform, 1.0, 0.0)
            known = torch.where(due, drawn.long(), known)
        return Lesson(state, target)

    def _drawn_from(self, known: Tensor, given: Tensor, free: Tensor, step: Tensor) -> Tensor:
        """What each sample's own step (B,) of the teacher draws from: weights (B, N, K)."""
        image = self.fusion.image.encode(known)
        fused, _ = self.fusion.fuse(torch.cat([image, image]), torch.cat([given, free]))
        with_text, without = self.fusion.image.decode(fused).chunk(2)
        ramp = (step + 1).float() / self.sampler.image_steps
        weight = 1 + self.sampler.guidance * ramp[:, None, None]
        logits = guided(with_text, without, weight)
        return draw_weights(logits, self.sampler.image_temperature, self.sampler.min_probability)


class DistillObjective(FusionObjective):
    """The objective with the teacher in the place of the data for text -> image."""

    def __init__(self, fusion: Fusion, cfg: FusionConfig, dims: Dims, steps: int) -> None:
        super().__init__(fusion, cfg, dims)
        self.steps = steps

    def forward(
        self, codes: Tensor, tokens: Tensor, noise: Tensor, *lesson: Tensor
    ) -> dict[str, Tensor]:
        """As `FusionObjective`, with the fields of a `Lesson` behind."""
        shown = Lesson(*lesson)
        plan = self.plan(codes, tokens, noise)
        taught = plan.task == TAUGHT
        masked = shown.state == self.dims.codebook_size
        image = Masked(
            torch.where(taught[:, None], shown.state, plan.image.ids),
            torch.where(taught[:, None], masked, plan.image.mask),
            torch.where(taught, masked.float().mean(1), plan.image.ratio),
        )
        return self.losses(codes, tokens, Plan(plan.task, image, plan.text, shown.target))

    def image_losses(self, features: Tensor, codes: Tensor, plan: Plan) -> Tensor:
        """As in `FusionObjective`; of taught samples the divergence from the teacher."""
        if plan.target is None:
            raise ValueError("a student needs a lesson")
        taught = plan.task == TAUGHT
        given = codes, plan.target, taught[:, None].expand(codes.shape)
        surprise = of_places(self.fusion.image, features, _surprise, given)
        own = self._likelihood(surprise, codes, plan.image, MEAN_ARCCOS)
        # Over a batch each place counts alike; a step has N / steps of them in the mean.
        return torch.where(taught, surprise.sum(1) * self.steps / self.dims.positions, own)


def _surprise(logits: Tensor, codes: Tensor, target: Tensor, taught: Tensor) -> Tensor:
    """Per place, in units of ln(K): cross-entropy; where it is taught, the divergence from the
    target, which is 0 at places of other steps.
    """
    apart = F.kl_div(F.log_softmax(logits, -1), target, reduction="none").sum(-1)
    return torch.where(taught, apart / math.log(logits.shape[-1]), cross_entropy(logits, codes))
