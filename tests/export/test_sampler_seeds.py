"""The samplers as graphs draw what PyTorch draws, whatever the noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmprod.export.graph import assemble, parts_of
from mmprod.export.graph_file import save_graph
from mmprod.export.onnx_export import export_part
from mmprod.graphs.catalog import build_catalog
from mmprod.graphs.modules import build_module
from mmprod.graphs.runner import example_inputs
from mmprod.runners.ort import OrtRunner
from mmprod.runners.torch import TorchRunner
from tests.export.tiny import CONFIG, DIMS, Exported

SAMPLERS = tuple(n for n, spec in build_catalog(DIMS, CONFIG.sampler).items() if spec.loop_steps)
IDS = ("codes", "tokens")


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_id_is_that_of_torch_over_100_seeds(exported: Exported, name: str) -> None:
    """Batches of 1 to 3. What is drawn differs from seed to seed, or nothing would be shown."""
    models, spec = exported.models, exported.bundle.specs[name]
    module = build_module(
        name, codec=models.codec, fusion=models.fusion, dims=DIMS, sampler=CONFIG.sampler
    )
    (artefact,) = exported.bundle.artefacts("onnx", name, "fp32")
    torch = TorchRunner(spec, module)
    ort = OrtRunner(spec, exported.bundle.path(artefact), threads=1)
    drawn = set()
    for seed in range(100):
        inputs = example_inputs(spec, 1 + seed % 3, seed)
        expected, found = torch(inputs), ort(inputs)
        for output in (tensor.name for tensor in spec.outputs if tensor.name in IDS):
            np.testing.assert_array_equal(expected[output], found[output], f"seed {seed}")
            drawn.add(found[output][0].tobytes())
    assert len(drawn) > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_to_image", "joint", "edit"])
def test_samplers_without_guidance_draw_what_torch_draws(
    exported: Exported, name: str, tmp_path: Path
) -> None:
    """What a student of `mmprod distill` is exported as; writing it checks the operators."""
    sampler, models = CONFIG.sampler.model_copy(update={"guidance": 0.0}), exported.models
    spec = build_catalog(DIMS, sampler)[name]
    module = build_module(
        name, codec=models.codec, fusion=models.fusion, dims=DIMS, sampler=sampler
    )
    parts = {part.name: export_part(part) for part in parts_of(spec, module)}
    graph = assemble(spec, module, parts, "fp32")
    (path,) = save_graph(graph, tmp_path / f"{name}.onnx")
    torch, ort = TorchRunner(spec, module), OrtRunner(spec, path, threads=1)
    for seed in range(100):
        inputs = example_inputs(spec, 1 + seed % 3, seed)
        expected, found = torch(inputs), ort(inputs)
        for output in (tensor.name for tensor in spec.outputs if tensor.name in IDS):
            np.testing.assert_array_equal(expected[output], found[output], f"seed {seed}")
