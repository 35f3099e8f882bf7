"""Figures from given weights, and the names they may bear."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from mmprod.errors import ConfigError, IntegrityError
from mmprod.evaluation.given import (
    LPIPS_HEADS,
    all_of,
    features,
    frechet_judge,
    lpips_judge,
    lpips_name,
)
from mmprod.runners.ort import FeatureGraph

from .test_pictures import noisy, pictures

SMALL = ((4, 4), (4, 4), (4, 4, 4), (4, 4, 4), (4, 4, 4))


@pytest.fixture
def trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file like VGG16's, of four channels."""
    monkeypatch.setattr("mmprod.models.perceptual.STAGES", SMALL)
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for number, place in enumerate(places):
        inputs = 4 if number else 3
        tensors[f"features.{place}.weight"] = torch.randn(4, inputs, 3, 3, generator=generator)
        tensors[f"features.{place}.bias"] = torch.zeros(4)
    save_file(tensors, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def extractor(path: Path, kind: int, shape: list[int | str], axes: list[int]) -> Path:
    """A graph that averages its pictures over `axes`, as float."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f", "axes"], ["y"], keepdims=0),
    ]
    constant = helper.make_tensor("axes", TensorProto.INT64, [len(axes)], axes)
    graph = helper.make_graph(
        nodes,
        "features",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [constant],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def test_perceptual_distance_grows_with_noise_and_is_named_a_substitute(trunk: Path) -> None:
    originals = pictures(3, 32)
    judge = lpips_judge(trunk, None)
    found = [judge(originals, noisy(originals, d)) for d in (0.0, 3.0, 20.0)]
    (name,) = found[0]
    assert name.startswith("LPIPS-like distance [small.safetensors, sha256 ")
    assert name.endswith("no heads]")
    assert found[0][name] == pytest.approx(0, abs=1e-6)
    assert found[0][name] < found[1][name] < found[2][name]


def test_only_the_published_files_are_called_lpips() -> None:
    published = "397923af" + 56 * "0"
    assert lpips_name("vgg16-397923af.pth", published, LPIPS_HEADS) == "LPIPS (vgg, v0.1)"
    for trunk_sha, heads_sha in ((64 * "1", LPIPS_HEADS), (published, 64 * "1"), (published, "")):
        assert lpips_name("vgg.pth", trunk_sha, heads_sha).startswith("LPIPS-like distance [")


@pytest.mark.parametrize("shape", [["n", "h", "w", 3], [2, 16, 16, 3]])
def test_features_of_uint8_pictures_at_any_batch_and_size(
    tmp_path: Path, shape: list[int | str]
) -> None:
    graph = FeatureGraph(extractor(tmp_path / "f.onnx", TensorProto.UINT8, shape, [1, 2]))
    originals = pictures(5, 32)
    found = features(graph, originals)
    assert found.shape == (5, 3)
    np.testing.assert_allclose(found, originals.mean(axis=(1, 2)), atol=0.6)


def test_features_of_float_pictures_are_maps_or_vectors(tmp_path: Path) -> None:
    path = extractor(tmp_path / "f.onnx", TensorProto.FLOAT, ["n", 3, "h", "w"], [2])
    originals = pictures(4, 16)
    found = features(FeatureGraph(path), originals)
    wanted = (originals / 255).mean(axis=1).transpose(0, 2, 1).reshape(4, -1)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_frechet_distance_of_pictures_is_named_after_its_features(tmp_path: Path) -> None:
    path = extractor(tmp_path / "mean.onnx", TensorProto.UINT8, ["n", "h", "w", 3], [1, 2])
    originals = pictures(6, 16)
    brighter = (originals.astype(np.int16) + 5).clip(0, 255).astype(np.uint8)
    judge = all_of([frechet_judge(path)])
    assert judge is not None
    ((name, value),) = judge(originals, brighter).items()
    assert name.startswith("Frechet distance [features: mean.onnx, sha256 ")
    assert name.endswith("6 pictures]")
    assert value == pytest.approx(3 * 25, rel=0.05)
    assert judge(originals, originals)[name] == pytest.approx(0, abs=1e-6)


def test_what_is_no_feature_extractor_is_refused(tmp_path: Path) -> None:
    path = extractor(tmp_path / "f.onnx", TensorProto.INT32, ["n", 4], [1])
    with pytest.raises(ConfigError, match="n', 4"):
        FeatureGraph(path)
    for kind, shape in (
        (TensorProto.UINT8, ["n", "h", "w", 1]),
        (TensorProto.FLOAT, ["n", 1, "h", "w"]),
        (TensorProto.UINT8, ["n", 3, "h", "w"]),
        (TensorProto.FLOAT, [3]),
    ):
        path = extractor(tmp_path / "f.onnx", kind, shape, [0])
        with pytest.raises(ConfigError, match="takes"):
            FeatureGraph(path)
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(IntegrityError):
        FeatureGraph(tmp_path / "bad.onnx")
    assert all_of([]) is None
