"""`--precision auto`: what is tried, what is refused, and a whole export with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprod.bundle import create_bundle, open_bundle
from mmprod.cli.auto import candidates
from mmprod.config.schema import Dims, SamplerConfig
from mmprod.engines.targets import check_request
from mmprod.errors import ConfigError

from .conftest import Mmprod

AUTO = ("auto",)


def test_every_precision_is_tried_when_no_engines_are_asked_for() -> None:
    assert candidates(AUTO, (), check_request) == ("fp32", "fp16", "bf16", "mixed", "int8", "fp8")


@pytest.mark.parametrize(
    ("targets", "tried"),
    [
        (("sm89", "sm120"), ("fp32", "fp16", "bf16", "mixed", "int8", "fp8")),
        (("sm86", "sm89"), ("fp32", "fp16", "bf16", "mixed", "int8")),
        (("sm75",), ("fp32", "fp16", "mixed")),
    ],
)
def test_only_what_every_target_has_is_tried(
    targets: tuple[str, ...], tried: tuple[str, ...]
) -> None:
    assert candidates(AUTO, targets, check_request) == tried


def test_a_target_that_can_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown target 'sm42'"):
        candidates(AUTO, ("sm42",), check_request)


@pytest.mark.parametrize("flags", [(), ("--trt",)])
def test_auto_heeds_targets_with_and_without_engines(
    flags: tuple[str, ...], mmprod: Mmprod, tmp_path: Path
) -> None:
    common = ("export", tmp_path / "nowhere", "--target", "sm42", *flags)
    refused = mmprod(*common, "--precision", "auto")
    assert refused.code == 2
    assert "unknown target 'sm42'" in refused.err
    assert ("sm42" in mmprod(*common, "--precision", "fp32").err) == bool(flags)


def test_auto_stands_alone(mmprod: Mmprod, tmp_path: Path) -> None:
    result = mmprod("export", tmp_path / "nowhere", "--precision", "auto,fp16")
    assert result.code == 2
    assert "auto tries every precision" in result.err


def test_build_wants_a_bundle_that_auto_was_used_on(mmprod: Mmprod, tmp_path: Path) -> None:
    dims = Dims(16, 4, 32, 8, 64, 24)
    made = create_bundle(
        tmp_path / "b", name="b", dims=dims, sampler=SamplerConfig(), provenance={}
    )
    path = made.root / "onnx" / "embed_text.fp32.onnx"
    path.parent.mkdir()
    path.write_bytes(b"a file")
    made.add(path, role="onnx", graph="embed_text", precision="fp32")
    made.save()
    result = mmprod("build", made.root, "--trt", "--precision", "auto", "--target", "sm86")
    assert result.code == 2
    assert "no precision assigned to embed_text" in result.err
    assert "export RUN --precision auto" in result.err


@pytest.mark.slow
def test_an_export_keeps_the_smallest_of_each_graph(
    mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    options = ("--precision", "auto", "--target", "sm89", "--out", out, "--json")
    result = mmprod("export", run, *options)
    assert result.code == 0, result.err
    options = result.json()["precisions"]
    bundle = open_bundle(out)
    for graph in bundle.specs:
        tried = [option for option in options if option["graph"] == graph]
        assert len(tried) == 6
        (kept,) = [option for option in tried if option["chosen"]]
        passing = [option["bytes"] for option in tried if option["status"] == "pass"]
        assert kept["bytes"] <= 1.01 * min(passing)
        held = {artefact.precision for artefact in bundle.artefacts(role="onnx", graph=graph)}
        assert held == {"fp32", kept["precision"]}
    picture = tmp_path / "x.png"
    drawn = mmprod("generate", out, "a hat", "--precision", "auto", "--out", picture, "--json")
    assert drawn.code == 0, drawn.err
    assert picture.is_file()
