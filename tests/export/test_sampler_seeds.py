"""The samplers as graphs draw what PyTorch draws, whatever the noise."""

from __future__ import annotations

import numpy as np
import pytest

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
