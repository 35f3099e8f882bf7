"""The sampler on the host against the sampler in the graph, and what counts as agreement."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmprod.bench.agree import disagreement
from mmprod.bench.host_loop import HostLoop, Order, sampling_order
from mmprod.graphs.catalog import build_catalog
from mmprod.graphs.modules import build_module
from mmprod.graphs.runner import Array, Arrays, Runner, example_inputs
from mmprod.models.codec import build_codec
from mmprod.models.fusion import build_fusion
from mmprod.runners.torch import TorchRunner
from tests.export.tiny import CONFIG, DIMS

SPECS = build_catalog(DIMS, CONFIG.sampler)
SPEC = SPECS["text_to_image"]


@pytest.fixture(scope="module")
def runners() -> dict[str, Runner]:
    torch.manual_seed(5)
    codec, fusion = build_codec(CONFIG.codec).eval(), build_fusion(CONFIG.fusion, DIMS).eval()
    for name, parameter in fusion.named_parameters():
        if name.endswith("embed.weight"):
            parameter.data.mul_(4)  # logits of a fresh model are all alike, which tests nothing
    return {
        name: TorchRunner(
            SPECS[name],
            build_module(name, codec=codec, fusion=fusion, dims=DIMS, sampler=CONFIG.sampler),
        )
        for name in ("fusion_step", "codec_decode", "text_to_image")
    }


def loop(runners: dict[str, Runner], order: Order) -> HostLoop:
    return HostLoop(SPEC, (runners["fusion_step"], runners["codec_decode"]), CONFIG.sampler, order)


@pytest.mark.parametrize("batch", [1, 3])
def test_same_noise_gives_the_same_codes(batch: int, runners: dict[str, Runner]) -> None:
    host = loop(runners, sampling_order(DIMS, CONFIG.sampler))
    for seed in range(4):
        inputs = example_inputs(SPEC, batch, seed)
        ours, theirs = host(inputs), runners["text_to_image"](inputs)
        assert disagreement(SPEC, ours, theirs, exact=True) == ""
        assert len(np.unique(theirs["codes"])) > 3


@pytest.mark.parametrize("fault", ["order", "bounds", "guidance"])
def test_another_sampler_is_noticed(fault: str, runners: dict[str, Runner]) -> None:
    order = sampling_order(DIMS, CONFIG.sampler)
    sampler = CONFIG.sampler
    if fault == "order":
        order = replace(order, ranks=order.ranks[::-1])
    elif fault == "bounds":
        order = replace(order, bounds=(0, 1, 2, order.bounds[-1]))
    else:
        sampler = sampler.model_copy(update={"guidance": 0.0})
    host = HostLoop(SPEC, (runners["fusion_step"], runners["codec_decode"]), sampler, order)
    inputs = example_inputs(SPEC, 8, 1)
    said = disagreement(SPEC, host(inputs), runners["text_to_image"](inputs), exact=True)
    assert "alike" in said


def test_without_guidance_nothing_is_computed_twice(runners: dict[str, Runner]) -> None:
    """As the exported sampler does: else a loop over a student's graphs would do double work."""
    batches: list[int] = []

    class Counting:
        spec, backend, close = SPECS["fusion_step"], "counting", staticmethod(lambda: None)

        def __call__(self, inputs: Arrays) -> dict[str, Array]:
            batches.append(len(inputs["codes"]))
            return runners["fusion_step"](inputs)

    sampler = CONFIG.sampler.model_copy(update={"guidance": 0.0})
    parts = (Counting(), runners["codec_decode"])
    HostLoop(SPEC, parts, sampler, sampling_order(DIMS, sampler))(example_inputs(SPEC, 3, 0))
    assert batches == [3] * sampler.image_steps


def test_one_code_is_too_many_for_a_loop_only() -> None:
    codes = np.arange(400, dtype=np.int32).reshape(25, 16)
    pixels = np.zeros((25, 16, 16, 3), np.uint8)
    other = codes.copy()
    other[0, 0] = 9
    ours: dict[str, Array] = {"codes": other, "pixels": pixels}
    theirs: dict[str, Array] = {"codes": codes, "pixels": pixels}
    assert "codes" in disagreement(SPEC, ours, theirs, exact=True)
    assert disagreement(SPEC, ours, theirs, exact=False) == ""


@pytest.mark.parametrize("value", [np.nan, -1.0])
def test_floats_are_held_against_their_direction(value: float) -> None:
    spec = SPECS["embed_text"]
    good = {"embedding": np.ones((2, 16), np.float32)}
    bad = {"embedding": np.full((2, 16), value, np.float32)}
    assert disagreement(spec, good, good, exact=False) == ""
    assert "cosine" in disagreement(spec, bad, good, exact=False)


def test_a_shape_that_differs_is_named() -> None:
    spec = SPECS["embed_text"]
    one, two = (np.ones((n, 16), np.float32) for n in (1, 2))
    assert "shape" in disagreement(spec, {"embedding": one}, {"embedding": two}, exact=False)
