"""Samplers are followed step by step: where they part from the reference, and by how little."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mmprod.bundle import create_bundle
from mmprod.config.schema import CodecConfig, Config, DataConfig, FusionConfig, SamplerConfig
from mmprod.errors import EnvironmentMissing
from mmprod.graphs.catalog import build_catalog
from mmprod.graphs.modules import build_module
from mmprod.graphs.runner import Array, Runner, example_inputs
from mmprod.graphs.spec import GraphSpec
from mmprod.models.codec import build_codec
from mmprod.models.fusion import build_fusion
from mmprod.models.order import halton_ranks, image_bounds
from mmprod.parity.candidates import Candidate, Parting
from mmprod.parity.cases import Case
from mmprod.parity.check import check_graph
from mmprod.parity.report import Subject
from mmprod.parity.trajectory import Path, following
from mmprod.runners.torch import TorchRunner
from tests.parity.answers import FakeRunner

CONFIG = Config(
    name="steps",
    data=DataConfig(image_size=16, text_length=18, vocabulary=300),
    codec=CodecConfig(patch=2, channels=8, multipliers=(1, 2), codebook_size=32, code_dim=4),
    fusion=FusionConfig(
        width=32, heads=2, image_encoder=1, text_encoder=1, joint=1, shared=1, embedding=16
    ),
    sampler=SamplerConfig(image_steps=4, text_steps=3, guidance=1.5, min_probability=0.1),
)
DIMS = CONFIG.dims(40)
SPECS = build_catalog(DIMS, CONFIG.sampler)
SAMPLERS = ("text_to_image", "image_to_text", "joint", "edit")


@pytest.fixture(scope="module")
def graph() -> Callable[[str], Runner]:
    torch.manual_seed(0)
    codec, fusion = build_codec(CONFIG.codec).eval(), build_fusion(CONFIG.fusion, DIMS).eval()
    for stream in (fusion.image, fusion.text):
        stream.embed.weight.data *= 20  # logits of a fresh model are all alike

    def open_graph(name: str) -> Runner:
        module = build_module(name, codec=codec, fusion=fusion, dims=DIMS, sampler=CONFIG.sampler)
        return TorchRunner(SPECS[name], module)

    return open_graph


Sampled = tuple[dict[str, Array], dict[str, Array]]


def sampled(graph: Callable[[str], Runner], name: str, batch: int = 1) -> Sampled:
    inputs = example_inputs(SPECS[name], batch, seed=3)
    return inputs, dict(graph(name)(inputs))


def moved(outputs: dict[str, Array], name: str, places: slice | int, sample: int = 0) -> Sampled:
    """The outputs with other ids at these places."""
    ids = outputs[name].copy()
    below = DIMS.codebook_size if name == "codes" else DIMS.vocabulary
    ids[sample, places] = (ids[sample, places] + 1) % below
    return outputs, {**outputs, name: ids}


def path(graph: Callable[[str], Runner], name: str) -> Path:
    return Path(SPECS[name], DIMS, CONFIG.sampler, graph)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "image_to_text"])
def test_the_step_of_a_code_is_that_of_its_place(graph: Callable[[str], Runner], name: str) -> None:
    """Up to the last step, so that all of them are drawn on the host as in the sampler."""
    inputs, outputs = sampled(graph, name)
    free = np.flatnonzero(inputs["keep"][0] == 0) if "keep" in inputs else np.arange(16)
    ranks = np.array(halton_ranks(DIMS.grid))[free]
    bounds = image_bounds(DIMS.positions, CONFIG.sampler.image_steps)
    for place, rank in ((int(free[i]), ranks[i]) for i in (ranks.argmin(), ranks.argmax())):
        found = path(graph, name).parting(inputs, *moved(outputs, "codes", place))
        assert found is not None
        step = next(t for t, high in enumerate(bounds) if rank < high)
        assert (found.name, found.place, found.step) == ("codes", place, step)
        assert found.margin is not None
        assert 0 <= found.margin <= 1


@pytest.mark.parametrize("name", ["image_to_text", "joint"])
def test_the_first_of_many_moved_words(graph: Callable[[str], Runner], name: str) -> None:
    """All words moved: it parts in the first step that draws a word, which is step 1."""
    inputs, outputs = sampled(graph, name)
    found = path(graph, name).parting(inputs, *moved(outputs, "tokens", slice(None)))
    assert found is not None
    assert (found.name, found.step) == ("tokens", 1)
    steps = {
        path(graph, name).parting(inputs, *moved(outputs, "tokens", place)).step  # type: ignore[union-attr]
        for place in range(DIMS.text_length)
    }
    assert steps == set(range(1, SPECS[name].loop_steps + 1))


def test_equal_ids_do_not_part(graph: Callable[[str], Runner]) -> None:
    inputs, outputs = sampled(graph, "joint")
    assert path(graph, "joint").parting(inputs, outputs, outputs) is None


def test_a_kept_place_parts_before_the_first_step(graph: Callable[[str], Runner]) -> None:
    inputs, outputs = sampled(graph, "edit")
    kept = int(np.flatnonzero(inputs["keep"][0])[0])
    found = path(graph, "edit").parting(inputs, *moved(outputs, "codes", kept))
    assert found == Parting("codes", kept, 0, None)


def test_the_margin_is_what_the_noise_has_to_move_by(graph: Callable[[str], Runner]) -> None:
    """A draw that other noise moves: the way to the other id is no longer than the noise's."""
    inputs, outputs = sampled(graph, "text_to_image")
    noise = inputs["noise"].copy()
    noise[:, 0] = (noise[:, 0] + 0.05).clip(max=0.999)
    other = dict(graph("text_to_image")({**inputs, "noise": noise}))
    found = path(graph, "text_to_image").parting(inputs, outputs, other)
    assert found is not None
    assert found.step == 1
    assert found.margin is not None
    assert 0 < found.margin <= 0.05 + 1e-5


def test_what_the_host_does_not_reproduce_is_not_spoken_of(
    graph: Callable[[str], Runner], caplog: pytest.LogCaptureFixture
) -> None:
    inputs, outputs = sampled(graph, "text_to_image")
    foreign = moved(outputs, "codes", slice(None))[1]  # as if another sampler had drawn them
    with caplog.at_level(logging.WARNING):
        assert path(graph, "text_to_image").parting(inputs, foreign, outputs) is None
    assert "draws other ids on the host" in caplog.text


def test_without_the_graph_nothing_is_known(caplog: pytest.LogCaptureFixture) -> None:
    def absent(name: str) -> Runner:
        raise EnvironmentMissing(f"no {name}", hint="")

    inputs = example_inputs(SPECS["text_to_image"], 1, seed=0)
    ids = {"codes": np.zeros((1, DIMS.positions), np.int32)}
    with caplog.at_level(logging.WARNING):
        assert (
            Path(SPECS["text_to_image"], DIMS, CONFIG.sampler, absent).parting(inputs, ids, ids)
            is None
        )
    assert "no fusion_step" in caplog.text


@pytest.mark.parametrize("live", [True, False])
def test_a_row_tells_sample_place_step_and_margin(
    graph: Callable[[str], Runner], live: bool, tmp_path: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Live; without a reference, and without a graph in the bundle, the row has all but that."""
    name = "text_to_image"
    inputs, outputs = sampled(graph, name, batch=3)
    last = int(np.argmax(halton_ranks(DIMS.grid)))
    answer = moved(outputs, "codes", last, sample=2)[1]
    made = Candidate(
        Subject("torch-ort", name, "fp16"), lambda: FakeRunner(SPECS[name], lambda _: answer)
    )
    case = Case("noise", inputs, outputs, {"batch": 3})
    bundle = create_bundle(
        tmp_path / "b",
        name="b",
        dims=DIMS,
        sampler=CONFIG.sampler,
        provenance={},  # type: ignore[operator]
    )

    def reference(spec: GraphSpec) -> Runner:
        return graph(spec.name)

    source = reference if live else None
    with following(bundle, SPECS[name], [made], source, lambda item: item) as ready:
        (row,) = check_graph(SPECS[name], [case], None, ready)
    output = next(o for o in row.outputs if o.name == "codes")
    assert output.first is not None
    assert output.first.index == (2, last)
    assert output.figures["differing_samples"] == 1
    assert ("first_step" in output.figures) is live
    if live:
        assert output.figures["first_step"] == CONFIG.sampler.image_steps
        assert 0 <= output.figures["margin"] <= 1
    else:
        assert "the bundle has no fusion_step in fp32" in caplog.text
