"""SigLIP: in groups, and around a ring of one. Several ranks: tests/training/test_ring.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mmprod.models.contrast import Neighbours, Seen, around_the_ring, within_groups
from mmprod.models.fusion_loss import FusionObjective
from tests.models.test_fusion import CFG, DIMS, batch, fusion


def inputs(count: int) -> tuple[torch.Tensor, ...]:
    """Vectors of both modalities with gradients, shares of both, scale, bias."""
    generator = torch.Generator().manual_seed(0)
    image, text = (
        F.normalize(torch.randn(count, 6, generator=generator), dim=1).requires_grad_()
        for _ in range(2)
    )
    shares = torch.rand(2, count, generator=generator)
    scale, bias = torch.tensor(3.0).requires_grad_(), torch.tensor(-1.5).requires_grad_()
    return image, text, *shares, scale, bias


def by_hand(image, text, seen, seen_text, scale, bias) -> torch.Tensor:
    """Every pair of the batch, a mean over pictures."""
    logits = scale * image @ text.T + bias
    sign = 2 * torch.eye(len(image)) - 1
    return -(F.logsigmoid(sign * logits) * seen[:, None] * seen_text).sum() / len(image)


def test_a_ring_of_one_is_the_loss_of_the_whole_batch_with_its_gradients() -> None:
    image, text, seen, seen_text, scale, bias = inputs(12)
    learned = (image, text, scale, bias)
    found = around_the_ring(Seen(image, seen), Seen(text, seen_text), scale, bias, Neighbours())
    expected = by_hand(image, text, seen, seen_text, scale, bias)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    ours = torch.autograd.grad(found * 0.7, learned)
    theirs = torch.autograd.grad(expected * 0.7, learned)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_groups_are_rings_of_their_own() -> None:
    image, text, seen, seen_text, scale, bias = inputs(16)
    whole = within_groups(Seen(image, seen), Seen(text, seen_text), scale, bias)
    halves = [
        by_hand(image[rows], text[rows], seen[rows], seen_text[rows], scale, bias)
        for rows in (slice(8), slice(8, 16))
    ]
    torch.testing.assert_close(whole, sum(halves) / 2)


def test_the_objective_contrasts_as_it_is_told() -> None:
    """With one group of samples both are the same; with two, the batch has more to tell apart."""
    wide = CFG.model_copy(update={"contrast": "batch"})
    small, large = ([t[:size] for t in batch(16)] for size in (8, 16))
    plain, ring = (FusionObjective(fusion(), cfg, DIMS) for cfg in (CFG, wide))
    torch.testing.assert_close(ring(*small)["contrastive"], plain(*small)["contrastive"])
    assert float(ring(*large)["contrastive"].detach()) > float(
        plain(*large)["contrastive"].detach()
    )
