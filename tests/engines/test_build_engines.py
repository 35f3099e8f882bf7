"""A bundle gets its engines: whole, listed, explained, taken again, and never half of one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmprod.bundle import Bundle, create_bundle, open_bundle
from mmprod.config.schema import Dims, SamplerConfig
from mmprod.engines import BuildEvent, EngineRecord, Limits, build_engines
from mmprod.errors import (
    ConfigError,
    EnvironmentMissing,
    IntegrityError,
    MmprodError,
    PrecisionMismatch,
)
from mmprod.manifest import sha256_file
from tests.engines import small_graphs

DIMS = Dims(16, 4, 32, 8, 64, 24)
GRAPHS = ("embed_image", "embed_text")


def write(bundle: Bundle, graph: str, precision: str, *, inside: str = "", seed: int = 0) -> Path:
    """An embed graph of the catalog; `inside`: the precision it really has."""
    path = bundle.root / f"onnx/{graph}.{precision}.onnx"
    spec = bundle.specs[graph]
    small_graphs.embed(path, (spec.inputs[0], spec.outputs[0]), inside or precision, seed)
    bundle.add(path, role="onnx", graph=graph, precision=precision)
    bundle.save()
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = create_bundle(
        tmp_path / "bundle", name="test", dims=DIMS, sampler=SamplerConfig(), provenance={}
    )
    for graph in GRAPHS:
        for precision in ("fp32", "fp16"):
            write(made, graph, precision)
    return made


def build(
    bundle: Bundle, precisions: Sequence[str] = ("fp16",), targets: Sequence[str] = ("sm86",)
) -> tuple[list[EngineRecord], list[BuildEvent]]:
    events: list[BuildEvent] = []
    records = build_engines(
        bundle,
        precisions=precisions,
        targets=targets,
        flavour="rtx",
        limits=Limits(workers=1),
        on_event=events.append,
    )
    return records, events


def info(bundle: Bundle, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle.root / "engines" / name).read_text())
    return content


def test_all_engines_are_built_listed_and_taken_again(bundle: Bundle) -> None:
    records, events = build(bundle, ("fp32", "fp16"), ("sm86", "sm89"))
    assert [(r.graph, r.precision, r.target) for r in records] == [
        (g, p, t) for g in GRAPHS for p in ("fp32", "fp16") for t in ("sm86", "sm89")
    ]
    assert {event.kind for event in events} == {"built"}
    assert [event.done for event in events] == list(range(1, 9))
    fresh = open_bundle(bundle.root)  # verifies every file
    assert len(fresh.artefacts(role="engine")) == len(fresh.artefacts(role="engine-info")) == 8
    assert len(fresh.summaries["engines"]) == 8
    assert list(bundle.root.parent.iterdir()) == [bundle.root]
    before = {path: path.stat().st_mtime_ns for path in bundle.root.glob("engines/*/*")}
    again, events = build(fresh, ("fp32", "fp16"), ("sm86", "sm89"))
    assert {event.kind for event in events} == {"cached"}
    assert all(record.cached for record in again)
    assert [r.sha256 for r in again] == [r.sha256 for r in records]
    assert before == {path: path.stat().st_mtime_ns for path in bundle.root.glob("engines/*/*")}


def test_the_json_says_what_the_plan_is(bundle: Bundle) -> None:
    (record, _), _ = build(bundle)
    content = info(bundle, "rtx-sm86/embed_image.fp16.json")
    plan = bundle.root / "engines/rtx-sm86/embed_image.fp16.plan"
    assert record.path == "engines/rtx-sm86/embed_image.fp16.plan"
    assert content["plan"]["sha256"] == record.sha256 == sha256_file(plan)
    assert content["plan"]["bytes"] == record.bytes == plan.stat().st_size
    onnx = bundle.artefacts(role="onnx", graph="embed_image", precision="fp16")[0]
    assert content["onnx"] == [onnx.entry.as_dict()]
    assert (content["flavour"], content["target"]) == ("rtx", "sm86")
    assert content["options"]["tf32"] is False
    assert content["profile"] == {"codes": {"min": [1, 16], "typical": [4, 16], "max": [16, 16]}}
    assert content["inputs"] == [{"name": "codes", "dtype": "int32", "shape": [-1, 16]}]
    assert content["precision_check"]["in_engine"] == {"Half": 1}
    assert content["memory"]["weights"] > 0
    assert content["state"].startswith("built, not run")


def test_a_changed_graph_is_built_again(bundle: Bundle) -> None:
    build(bundle)
    write(bundle, "embed_text", "fp16", seed=1)
    _, events = build(bundle)
    assert {event.graph: event.kind for event in events} == {
        "embed_image": "cached",
        "embed_text": "built",
    }
    assert len(open_bundle(bundle.root).summaries["engines"]) == 2


def test_another_target_joins_the_engines_that_are_there(bundle: Bundle) -> None:
    build(bundle, ("fp16",), ("sm86",))
    build(bundle, ("fp16",), ("sm120",))
    rows = open_bundle(bundle.root).summaries["engines"]
    assert [(row["graph"], row["target"]) for row in rows] == [
        (graph, target) for graph in GRAPHS for target in ("sm120", "sm86")
    ]


def test_a_tampered_plan_is_not_taken_again(bundle: Bundle) -> None:
    build(bundle)
    plan = bundle.root / "engines/rtx-sm86/embed_text.fp16.plan"
    content = bytearray(plan.read_bytes())
    content[5000] ^= 1
    plan.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"embed_text\.fp16\.plan"):
        build(bundle)


def test_a_tampered_graph_is_not_built(bundle: Bundle) -> None:
    path = bundle.root / "onnx/embed_text.fp16.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(IntegrityError, match=r"embed_text\.fp16\.onnx"):
        build(bundle)


def test_one_failure_fails_the_run_and_leaves_the_rest(bundle: Bundle) -> None:
    build(bundle, ("fp32", "fp16"))
    path = write(bundle, "embed_text", "fp32", seed=1)
    small_graphs.multinomial(path)
    bundle.add(path, role="onnx", graph="embed_text", precision="fp32")
    bundle.save()
    write(bundle, "embed_image", "fp32", seed=1)
    with pytest.raises(ConfigError, match=r"embed_text fp32 sm86: .*draw_tokens"):
        build(bundle, ("fp32", "fp16"))
    fresh = open_bundle(bundle.root)
    found = [(a.graph, a.precision) for a in fresh.artefacts(role="engine")]
    assert found == [("embed_image", "fp16"), ("embed_image", "fp32"), ("embed_text", "fp16")]
    assert len(fresh.summaries["engines"]) == 3
    # the engine that is left is that of the new graph
    onnx = fresh.artefacts(role="onnx", graph="embed_image", precision="fp32")[0]
    assert info(fresh, "rtx-sm86/embed_image.fp32.json")["onnx"] == [onnx.entry.as_dict()]


def test_a_graph_that_is_not_what_it_is_called(bundle: Bundle) -> None:
    write(bundle, "embed_text", "fp16", inside="fp32")
    write(bundle, "embed_image", "fp16", inside="fp32")
    with pytest.raises(PrecisionMismatch, match="2 of 2 engines were not built") as caught:
        build(bundle)
    assert "embed_image fp16 sm86: fp16 was asked" in caught.value.message
    assert "embed_text fp16 sm86: fp16 was asked" in caught.value.message
    assert not list(bundle.root.glob("engines/*/*"))
    assert open_bundle(bundle.root).artefacts(role="engine") == []


def test_a_bundle_in_a_folder_that_cannot_be_written(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(EnvironmentMissing, match="no room for unfinished engines"):
        build(bundle)


def test_changed_weights_beside_a_graph_are_a_changed_graph(bundle: Bundle) -> None:
    sidecar = bundle.root / "onnx/embed_text.fp16.onnx.data"
    for content, kind in ((b"one", "built"), (b"one", "cached"), (b"two", "built")):
        sidecar.write_bytes(content)
        bundle.add(sidecar, role="onnx-data", graph="embed_text", precision="fp16")
        _, events = build(bundle)
        assert {event.graph: event.kind for event in events}["embed_text"] == kind


@pytest.mark.parametrize(
    ("precisions", "targets", "message"),
    [
        (("bf16",), ("sm86", "sm75"), "bf16 engines cannot be built for sm75"),
        (("fp8",), ("sm86",), "the hardware has fp8 from sm89 on"),
        (("fp16",), ("sm86", "sm9o"), "unknown target 'sm9o'"),
        (("fp16",), ("sm90",), "no target of TensorRT for RTX"),
        (("fp16", "fp61"), ("sm86",), "unknown precision 'fp61'"),
        (("bf16",), ("sm86",), "has no embed_image in bf16; it has fp16, fp32"),
        ((), ("sm86",), "no precision or no target"),
    ],
)
def test_a_request_that_cannot_be_met_builds_nothing(
    bundle: Bundle, precisions: tuple[str, ...], targets: tuple[str, ...], message: str
) -> None:
    before = (bundle.root / "bundle.json").read_bytes()
    with pytest.raises(MmprodError, match=message) as caught:
        build(bundle, precisions, targets)
    assert isinstance(caught.value, ConfigError)
    assert caught.value.hint
    assert (bundle.root / "bundle.json").read_bytes() == before
