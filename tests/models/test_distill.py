"""What a teacher hands on is what its sampler draws from; the student's loss measures that."""

from __future__ import annotations

import torch

from mmprod.config.schema import SamplerConfig
from mmprod.graphs.samplers import TextToImageStep
from mmprod.models.distill import TAUGHT, DistillObjective, Lesson, Teacher, draw_teaching_noise
from mmprod.models.order import halton_ranks, image_bounds
from mmprod.models.unmask import draw_weights
from tests.models.test_fusion import CFG, DIMS, batch, fusion

SAMPLER = SamplerConfig(image_steps=4, text_steps=3, min_probability=0.2, image_temperature=0.8)
BLANK = 20
RANKS = torch.tensor(halton_ranks(4))


def spread(seed: int = 0):
    """A model whose logits differ from id to id, unlike those of fresh weights."""
    model = fusion(seed)
    with torch.no_grad():
        model.image.embed.weight.mul_(40)
        model.text.embed.weight.mul_(40)
    return model


def lesson_at(teacher: Teacher, size: int = 16, steps: tuple[int, int] = (4, 2)) -> Lesson:
    codes, tokens, _ = batch(size)
    noise = draw_teaching_noise(torch.Generator().manual_seed(5), size, DIMS, steps)
    lesson: Lesson = teacher(codes, tokens, noise)
    return lesson


def test_targets_are_what_the_steps_of_the_graph_draw_from() -> None:
    """Two steps of the graph's own module, under the same uniforms."""
    model, (codes, tokens, _) = spread(), batch(3)
    noise = draw_teaching_noise(torch.Generator().manual_seed(1), 3, DIMS, (4, 2))
    noise[:, 0], noise[:, 1] = 0.6, 0.9  # the second step of the student; no further places
    lesson = Teacher(model, DIMS, SAMPLER, 2)(codes, tokens, noise)
    bounds = image_bounds(16, 4)
    assert torch.equal(lesson.state, torch.where(bounds[2] > RANKS, codes, BLANK))

    step = TextToImageStep(model, DIMS, SAMPLER)
    uniforms = torch.zeros(3, 4, 16)
    uniforms[:, 2], uniforms[:, 3] = noise[:, 18:34], noise[:, 34:]
    known = lesson.state.to(torch.int32)
    blank = torch.full_like(tokens, DIMS.vocabulary)
    given, free = model.text.encode(tokens), model.text.encode(blank)
    for turn in (2, 3):
        fused = [model.fuse(model.image.encode(known), text)[0] for text in (given, free)]
        with_text, without = (model.image.decode(one) for one in fused)
        weight = 1 + SAMPLER.guidance * (turn + 1) / 4
        weights = draw_weights(without + weight * (with_text - without), 0.8, 0.2)
        due = (bounds[turn] <= RANKS) & (bounds[turn + 1] > RANKS)
        expected = (weights / weights.sum(-1, keepdim=True))[:, due]
        torch.testing.assert_close(lesson.target[:, due], expected, atol=1e-5, rtol=0)
        (known,) = step(torch.tensor([turn]), given, free, uniforms, known)
    assert float((expected == 0).float().mean()) > 0.1  # min-p is handed on, too


def test_targets_are_at_the_places_of_the_step_and_nowhere_else() -> None:
    lesson = lesson_at(Teacher(spread(), DIMS, SAMPLER, 2))
    mass = lesson.target.sum(-1)
    bounds = image_bounds(16, 2)
    for state, row in zip(lesson.state, mass, strict=True):
        low = 0 if bool((state[bounds[1] > RANKS] == BLANK).any()) else bounds[1]
        high = bounds[1] if low == 0 else bounds[2]
        asked = (high > RANKS) & (state == BLANK)
        torch.testing.assert_close(row, asked.float(), atol=1e-5, rtol=0)


def test_a_number_that_rounds_up_to_1_is_of_the_last_step() -> None:
    """Stratified numbers do: (4095 + u) / 4096 is 1 in float32 for one u in some thousands."""
    assert float((4095 + torch.tensor(1 - 2**-24)) / 4096) == 1
    codes, tokens, _ = batch(3)
    noise = draw_teaching_noise(torch.Generator().manual_seed(5), 3, DIMS, (4, 2))
    noise[:, 0], noise[:, 1] = 1, 0.9
    lesson = Teacher(spread(), DIMS, SAMPLER, 2)(codes, tokens, noise)
    assert torch.equal(lesson.state == BLANK, (image_bounds(16, 2)[1] <= RANKS).expand(3, -1))


def test_some_samples_know_places_out_of_order() -> None:
    """As when a picture is edited; about a quarter of them."""
    lesson = lesson_at(Teacher(spread(), DIMS, SAMPLER, 2), size=256)
    last = (lesson.state != BLANK)[:, RANKS == 15].squeeze(1)
    assert 0.05 < float(last.float().mean()) < 0.2


def objective(model, steps: int = 4) -> DistillObjective:
    return DistillObjective(model, CFG, DIMS, steps)


def test_a_student_that_draws_like_its_teacher_has_nothing_to_learn() -> None:
    model, plain = spread(), SamplerConfig(image_steps=4, guidance=0, min_probability=0)
    lesson = lesson_at(Teacher(model, DIMS, plain, 4), 64, (4, 4))
    own = objective(model)(*batch(64), lesson.state, lesson.target)
    other = objective(spread(1))(*batch(64), lesson.state, lesson.target)
    assert abs(float(own["text_to_image"])) < 1e-5
    assert float(other["text_to_image"]) > 0.1


def test_only_text_to_image_is_taught() -> None:
    """The other terms are those of the plain objective."""
    model = spread()
    lesson = lesson_at(Teacher(model, DIMS, SAMPLER, 2), 64)
    taught = objective(model, 2)(*batch(64), lesson.state, lesson.target)
    from mmprod.models.fusion_loss import TASKS, FusionObjective

    plain = FusionObjective(model, CFG, DIMS)(*batch(64))
    assert list(TASKS)[TAUGHT] == "text_to_image"
    for name in ("encoder", "reconstruction", "image_to_text"):
        torch.testing.assert_close(taught[name], plain[name])
    assert not torch.isclose(taught["text_to_image"], plain["text_to_image"])


def test_loss_of_a_batch_is_the_mean_over_its_parts() -> None:
    model = spread()
    lesson = lesson_at(Teacher(model, DIMS, SAMPLER, 2), 32)
    whole = (*batch(32), lesson.state, lesson.target)
    made = objective(model, 2)
    halves = [made(*(t[rows] for t in whole))["loss"] for rows in (slice(16), slice(16, 32))]
    torch.testing.assert_close(made(*whole)["loss"], sum(halves) / 2, atol=1e-6, rtol=0)


def test_every_parameter_learns_and_the_teacher_does_not() -> None:
    model, guide = spread(), spread(1).requires_grad_(False)
    lesson = lesson_at(Teacher(guide, DIMS, SAMPLER, 2))
    objective(model, 2)(*batch(), lesson.state, lesson.target)["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not lesson.target.requires_grad
