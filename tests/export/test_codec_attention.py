"""A codec with a block of attention, as the larger presets have it, as graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mmprod.export.graph import assemble, parts_of
from mmprod.export.graph_file import save_graph
from mmprod.export.onnx_export import export_part
from mmprod.graphs.catalog import build_catalog
from mmprod.graphs.modules import build_module
from mmprod.graphs.runner import example_inputs
from mmprod.models.codec import build_codec
from mmprod.models.fusion import build_fusion
from mmprod.runners.ort import OrtRunner
from mmprod.runners.torch import TorchRunner
from tests.export.tiny import CONFIG, DIMS


@pytest.mark.parametrize("name", ["codec_encode", "codec_decode"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_attention_in_the_codec_is_exported(name: str, precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    codec = build_codec(CONFIG.codec.model_copy(update={"attention": True})).eval()
    fusion = build_fusion(CONFIG.fusion, DIMS).eval()
    spec = build_catalog(DIMS, CONFIG.sampler)[name]
    module = build_module(name, codec=codec, fusion=fusion, dims=DIMS, sampler=CONFIG.sampler)
    traced = {part.name: export_part(part) for part in parts_of(spec, module)}
    path = tmp_path / "graph.onnx"
    save_graph(assemble(spec, module, traced, precision), path)
    given = example_inputs(spec, 3, seed=1)
    (found,) = OrtRunner(spec, path, threads=1, precision=precision)(given).values()
    (expected,) = TorchRunner(spec, module)(given).values()
    near = np.abs(found.astype(int) - expected.astype(int))
    if name == "codec_decode":
        assert near.max() <= (1 if precision == "fp32" else 8)
    else:
        assert (near > 0).mean() <= (0 if precision == "fp32" else 0.1)
