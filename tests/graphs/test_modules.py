"""Graph modules compose the models: loops equal steps by hand, every place is filled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmprod.config.schema import CodecConfig, Dims, FusionConfig, SamplerConfig
from mmprod.graphs.catalog import build_catalog
from mmprod.graphs.modules import LoopModule, build_module
from mmprod.graphs.runner import example_inputs
from mmprod.models.codec import Codec, build_codec
from mmprod.models.fusion import Fusion, build_fusion

DIMS = Dims(16, 4, 20, 6, 15, 16, 4)
SAMPLER = SamplerConfig(image_steps=4, text_steps=3)
CATALOG = build_catalog(DIMS, SAMPLER)
CODEC = CodecConfig(patch=2, channels=8, multipliers=(1, 2), codebook_size=20, code_dim=4)


@pytest.fixture(scope="module")
def models() -> tuple[Codec, Fusion]:
    torch.manual_seed(0)
    return build_codec(CODEC).eval(), build_fusion(FusionConfig(width=32, heads=2), DIMS).eval()


def run(name: str, models: tuple[Codec, Fusion], batch: int) -> tuple[torch.Tensor, ...]:
    made = build_module(name, codec=models[0], fusion=models[1], dims=DIMS, sampler=SAMPLER)
    inputs = example_inputs(CATALOG[name], batch, seed=1)
    with torch.inference_mode():
        outputs: tuple[torch.Tensor, ...] = made(*(torch.from_numpy(v) for v in inputs.values()))
    return outputs


@pytest.mark.parametrize("name", sorted(CATALOG))
@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_fit_the_catalog(name: str, batch: int, models: tuple[Codec, Fusion]) -> None:
    outputs = run(name, models, batch)
    assert len(outputs) == len(CATALOG[name].outputs)
    for value, spec in zip(outputs, CATALOG[name].outputs, strict=True):
        expected = spec.sizes({"batch": batch})
        if spec.role == "embedding":
            expected = (batch, 256)
        assert tuple(value.shape) == expected
        assert str(value.numpy().dtype) == spec.dtype


@pytest.mark.parametrize(
    ("name", "output", "mask"),
    [
        ("text_to_image", 1, 20),
        ("image_to_text", 0, 15),
        ("joint", 1, 20),
        ("joint", 2, 15),
        ("edit", 1, 20),
    ],
)
def test_samplers_leave_no_place_masked(
    name: str, output: int, mask: int, models: tuple[Codec, Fusion]
) -> None:
    ids = run(name, models, 5)[output]
    assert int(ids.min()) >= 0 and int(ids.max()) < mask


def test_a_sample_does_not_depend_on_its_batch(models: tuple[Codec, Fusion]) -> None:
    inputs = example_inputs(CATALOG["text_to_image"], 4, seed=2)
    sampler = module("text_to_image", models)
    with torch.inference_mode():
        whole = sampler(*(torch.from_numpy(v) for v in inputs.values()))
        alone = sampler(*(torch.from_numpy(v[2:3]) for v in inputs.values()))
    assert torch.equal(whole[1][2:3], alone[1])


def module(name: str, models: tuple[Codec, Fusion]) -> LoopModule:
    made = build_module(name, codec=models[0], fusion=models[1], dims=DIMS, sampler=SAMPLER)
    assert isinstance(made, LoopModule)
    return made


def test_an_edit_keeps_the_codes_of_kept_places_and_draws_the_others(
    models: tuple[Codec, Fusion],
) -> None:
    inputs = {k: torch.from_numpy(v) for k, v in example_inputs(CATALOG["edit"], 4, 3).items()}
    with torch.inference_mode():
        before = models[0].encode(inputs["original"])
        _, after = module("edit", models)(*inputs.values())
        other = {**inputs, "noise": 1 - inputs["noise"]}
        _, again = module("edit", models)(*other.values())
    kept = inputs["keep"] > 0
    assert 0 < int(kept.sum()) < kept.numel()
    assert torch.equal(after[kept], before[kept])
    assert not torch.equal(after[~kept], again[~kept])


def test_an_edit_of_every_place_is_a_picture_from_the_text(models: tuple[Codec, Fusion]) -> None:
    inputs = {k: torch.from_numpy(v) for k, v in example_inputs(CATALOG["edit"], 2, 4).items()}
    inputs["keep"].zero_()
    with torch.inference_mode():
        _, edited = module("edit", models)(*inputs.values())
        drawn = module("text_to_image", models)(inputs["tokens"], inputs["noise"])[1]
    assert torch.equal(edited, drawn)


def test_an_edit_shares_its_step_with_a_picture_from_a_text(models: tuple[Codec, Fusion]) -> None:
    """The export traces parts of one class and interface once."""
    edit, picture = module("edit", models), module("text_to_image", models)
    assert type(edit.body) is type(picture.body)
    assert type(edit.epilogue) is type(picture.epilogue)
    assert (edit.constants, edit.state) == (picture.constants, picture.state)


def test_joint_steps_equal_the_whole_model(models: tuple[Codec, Fusion]) -> None:
    """One step by hand: the picture's logits with and without the tokens, the text's with both."""
    made, fusion = module("joint", models), models[1]
    inputs = example_inputs(CATALOG["joint"], 2, seed=6)
    noise = torch.from_numpy(inputs["noise"])
    step = torch.tensor([1])
    with torch.inference_mode():
        free, noise, codes, tokens = made.prologue(noise)
        codes[:, ::2], tokens[:, :3] = 7, 5
        found = made.body(step, free, noise, codes, tokens)
        given_logits, text_logits = fusion(codes, tokens)
        free_logits, _ = fusion(codes, torch.full_like(tokens, DIMS.vocabulary))
        sampling = made.body.sampling
        drawn = sampling.image(step, given_logits, free_logits, codes, noise[..., :16])
        written = sampling.text(step, text_logits, tokens, noise[..., 16:])
    assert torch.equal(found[0], drawn) and torch.equal(found[1], written)


def test_text_features_made_once_equal_the_whole_model(models: tuple[Codec, Fusion]) -> None:
    """The prologue's cache of the text tower is exact: logits equal those of `fusion_step`."""
    _, fusion = models
    tokens = torch.randint(0, 15, (2, 6), generator=torch.Generator().manual_seed(3))
    codes = torch.randint(0, 21, (2, 16), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        cached = fusion.text.encode(tokens)
        fused, _ = fusion.fuse(fusion.image.encode(codes), cached)
        assert torch.equal(fusion.image.decode(fused), fusion(codes, tokens)[0])


def test_the_code_prior_is_the_whole_model_without_a_text(models: tuple[Codec, Fusion]) -> None:
    codes = torch.randint(0, 21, (3, 16), generator=torch.Generator().manual_seed(5))
    prior = build_module(
        "code_prior", codec=models[0], fusion=models[1], dims=DIMS, sampler=SAMPLER
    )
    with torch.inference_mode():
        (found,) = prior(codes.to(torch.int32))
        whole, _ = models[1](codes, torch.full((3, 6), 15))
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)


def test_loop_modules_name_what_they_carry(models: tuple[Codec, Fusion]) -> None:
    for name, spec in CATALOG.items():
        made = build_module(name, codec=models[0], fusion=models[1], dims=DIMS, sampler=SAMPLER)
        assert isinstance(made, LoopModule) == bool(spec.loop_steps)
        if isinstance(made, LoopModule):
            assert made.steps == spec.loop_steps
            inputs = example_inputs(spec, 2, seed=0)
            with torch.inference_mode():
                carried = made.prologue(*(torch.from_numpy(v) for v in inputs.values()))
            assert len(carried) == len(made.constants) + len(made.state)
            assert all(t.shape[0] == 2 for t in carried)


def test_inputs_and_outputs_share_no_name() -> None:
    """An ONNX graph names each value once."""
    for spec in CATALOG.values():
        names = [tensor.name for tensor in (*spec.inputs, *spec.outputs)]
        assert len(set(names)) == len(names)


def test_example_inputs_are_a_pure_function() -> None:
    for spec in CATALOG.values():
        first, again = example_inputs(spec, 3, seed=7), example_inputs(spec, 3, seed=7)
        other = example_inputs(spec, 3, seed=8)
        for tensor in spec.inputs:
            assert np.array_equal(first[tensor.name], again[tensor.name])
            assert not np.array_equal(first[tensor.name], other[tensor.name])
            assert first[tensor.name].dtype == tensor.dtype


@pytest.mark.parametrize("name", ["text_to_image", "edit", "joint"])
def test_a_sampler_without_guidance_draws_what_a_guidance_of_nearly_none_draws(
    name: str, models: tuple[Codec, Fusion]
) -> None:
    """It asks the model once per step instead of twice."""
    inputs = example_inputs(CATALOG[name], 3, seed=2)
    tensors = [torch.from_numpy(value) for value in inputs.values()]
    found, calls = [], []
    hook = models[1].connector[0].register_forward_hook(lambda _, given, __: calls.append(given[0]))
    for guidance in (0.0, 1e-9):
        sampler = SAMPLER.model_copy(update={"guidance": guidance})
        made = build_module(name, codec=models[0], fusion=models[1], dims=DIMS, sampler=sampler)
        with torch.inference_mode():
            found.append(made(*tensors))
    hook.remove()
    assert [len(features) for features in calls] == [3] * 4 + [6] * 4
    for alone, twice in zip(*found, strict=True):
        assert torch.equal(alone, twice)
