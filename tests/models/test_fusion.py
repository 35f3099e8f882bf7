"""The fusion transformer and its objective."""

from __future__ import annotations

import math

import torch

from mmprod.config.schema import Dims, FusionConfig
from mmprod.models.fusion import Fusion, build_fusion
from mmprod.models.fusion_loss import TASKS, FusionObjective, Masked, draw_noise

CFG = FusionConfig(width=32, heads=2, embedding=16)
DIMS = Dims(16, 4, 20, 6, 15, 16, 4)


def fusion(seed: int = 0) -> Fusion:
    torch.manual_seed(seed)
    model = build_fusion(CFG, DIMS)
    model.adopt_codebook(torch.randn(20, 4))
    return model.eval()


def batch(size: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 20, (size, 16), generator=generator)
    tokens = torch.randint(2, 15, (size, 6), generator=generator)
    tokens[:, 4], tokens[:, 5] = 1, 0
    return codes, tokens, draw_noise(generator, size, DIMS)


def test_shapes_and_types() -> None:
    image, text = fusion()(*batch()[:2])
    assert image.shape == (16, 16, 20) and text.shape == (16, 6, 15)
    assert image.dtype == text.dtype == torch.float32


def test_mask_ids_are_accepted_and_never_predicted() -> None:
    codes, tokens = torch.full((2, 16), 20), torch.full((2, 6), 15)
    image, text = fusion()(codes, tokens)
    assert image.shape[-1] == 20 and text.shape[-1] == 15
    assert bool(image.isfinite().all()) and bool(text.isfinite().all())


def test_samples_do_not_see_each_other() -> None:
    model = fusion()
    codes, tokens, _ = batch()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    image, text = model(codes, tokens)
    image_again, text_again = model(codes[order], tokens[order])
    torch.testing.assert_close(image[order], image_again, atol=1e-5, rtol=0)
    torch.testing.assert_close(text[order], text_again, atol=1e-5, rtol=0)


def test_each_modality_depends_on_the_other() -> None:
    model = fusion()
    codes, tokens, _ = batch()
    image, text = model(codes, tokens)
    assert not torch.equal(image, model(codes, tokens.roll(1, 0))[0])
    assert not torch.equal(text, model(codes.roll(1, 0), tokens)[1])


def test_places_are_told_apart_when_everything_is_masked() -> None:
    with torch.no_grad():
        image, _ = fusion()(torch.full((1, 16), 20), torch.full((1, 6), 15))
    assert float((image[0, 0] - image[0, 15]).abs().max()) > 1e-4


def test_embeddings_are_unit_vectors_of_one_modality_alone() -> None:
    model = fusion()
    codes, tokens, _ = batch()
    for vectors in (model.embed_image(codes), model.embed_text(tokens)):
        assert vectors.shape == (16, 16)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(16))


def test_codes_that_are_near_on_the_sphere_have_near_embeddings() -> None:
    model = fusion()
    with torch.no_grad():
        model.image.embed.weight.zero_()
        model.image.features[1] = model.image.features[0]
    table = model.image.table()
    torch.testing.assert_close(table[0], table[1])


def test_untrained_losses_start_near_one_per_nat_of_vocabulary() -> None:
    losses = FusionObjective(fusion(), CFG, DIMS)(*batch(64))
    losses = {name: value.detach() for name, value in losses.items()}
    assert 0.7 < float(losses["text_to_image"]) < 1.5
    assert 0.7 < float(losses["image_to_text"]) / CFG.text_weight < 2.0


def test_loss_is_the_sum_of_its_three_terms() -> None:
    losses = FusionObjective(fusion(), CFG, DIMS)(*batch(64))
    total = losses["encoder"] + losses["cross_modal"] + losses["reconstruction"]
    torch.testing.assert_close(losses["loss"], total)


def test_loss_of_a_batch_is_the_mean_over_its_parts() -> None:
    """What makes the loss independent of the number of ranks."""
    objective = FusionObjective(fusion(), CFG, DIMS)
    whole = batch(32)
    halves = [objective(*(t[rows] for t in whole))["loss"] for rows in (slice(16), slice(16, 32))]
    torch.testing.assert_close(objective(*whole)["loss"], sum(halves) / 2, atol=1e-6, rtol=0)


def test_every_masked_place_counts_alike() -> None:
    """Two samples of 4 and 12 masked places: the loss weighs them 4 to 12."""
    objective = FusionObjective(fusion(), CFG, DIMS)
    codes = torch.zeros(2, 16, dtype=torch.long)
    mask = torch.arange(16) < torch.tensor([[4], [12]])
    ratio = mask.float().mean(1)
    logits = torch.randn(2, 16, 20, generator=torch.Generator().manual_seed(8))
    masked = Masked(codes, mask, ratio)
    place = -torch.log_softmax(logits, -1)[..., 0] / math.log(20)
    per_sample = objective._likelihood(place, codes, masked, mean_ratio=0.5)
    torch.testing.assert_close(per_sample.mean(), place[mask].sum() / 16)


def test_objective_is_a_pure_function_and_every_parameter_learns() -> None:
    objective = FusionObjective(fusion(), CFG, DIMS)
    first, second = objective(*batch(64))["loss"], objective(*batch(64))["loss"]
    assert torch.equal(first, second)
    first.backward()
    assert [n for n, p in objective.named_parameters() if p.grad is None] == []


def test_tasks_are_stratified() -> None:
    noise = draw_noise(torch.Generator().manual_seed(5), 64, DIMS)
    assert abs(sum(TASKS.values()) - 1) < 1e-9
    for column in range(3):
        assert torch.equal((noise[:, column] * 64).long().sort().values, torch.arange(64))


def test_clean_modalities_are_not_scored() -> None:
    """With the task text_to_image, what the text head says changes nothing but contrast."""
    objective = FusionObjective(fusion(), CFG.model_copy(update={"contrastive_weight": 0.0}), DIMS)
    codes, tokens, noise = batch(16)
    noise[:, 0] = 0.3
    before = objective(codes, tokens, noise)["loss"]
    with torch.no_grad():
        objective.fusion.text.head_bias.add_(torch.randn(15))
    assert torch.equal(objective(codes, tokens, noise)["loss"], before)
