"""`tools/agreement.py` on a small bundle: the samplers agree, and a changed weight shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from mmprod.bundle import open_bundle
from mmprod.graphs.catalog import build_catalog
from tools import agreement

from .conftest import export_graphs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mmprod.checkpoint import open_run

    opened = open_run(run)
    specs = build_catalog(opened.dims, opened.config.sampler)
    root = tmp_path_factory.mktemp("agreement") / "bundle"
    made, _, _ = export_graphs(run, root, [n for n, spec in specs.items() if spec.loop_steps])
    made.save()
    return root


def test_every_seed_agrees_and_operators_are_named(
    bundle: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agreement.main([str(bundle), "--run", str(run), "--seeds", "3", "--batch", "2"]) == 0
    words = capsys.readouterr().out
    assert words.count("seeds that agree: 3 of 3") == 4
    assert words.count("100.0000%") == words.count("engines: none") == 4
    assert words.count(" Loop,") == 4


def test_another_weight_draws_otherwise(
    bundle: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    opened = open_bundle(copy)
    (artefact,) = opened.artefacts(role="onnx", graph="text_to_image", precision="fp32")
    path = copy / artefact.path
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if list(tensor.dims) == [opened.dims.codebook_size]:  # the head's bias is one of them
            value = onnx.numpy_helper.to_array(tensor)
            changed = value + np.arange(len(value), dtype=value.dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, path)
    opened.add(path, role="onnx", graph="text_to_image", precision="fp32")
    opened.save()
    code = agreement.main([str(copy), "--run", str(run), "--seeds", "3"])
    assert code == agreement.DIFFERS
    assert "seeds that agree: 0 of 3" in capsys.readouterr().out
