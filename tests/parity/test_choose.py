"""`auto`: the smallest precision that passes is kept, the others go, fp32 stays."""

from __future__ import annotations

import pytest

from mmprod.bundle import Bundle, open_bundle
from mmprod.bundle.assignment import AUTO, resolve
from mmprod.errors import ConfigError, ParityFailed
from mmprod.manifest import FileEntry
from mmprod.parity.choose import choose, keep_chosen
from mmprod.parity.report import ParityReport, Row, Status, Subject
from tests.parity.toy import ONNX, add_onnx


def row(
    graph: str, precision: str, size: int, status: Status = "pass", seconds: float = 1.0
) -> Row:
    files = (FileEntry(f"onnx/{graph}.{precision}.onnx", "0" * 64, size),)
    subject = Subject("torch-ort", graph, precision, files=files)
    return Row(subject, status, f"because {precision}", samples=10, seconds=seconds)


def report(*rows: Row) -> ParityReport:
    return ParityReport("toy", "torch", (1,), 1, rows)


def test_the_smallest_that_passes_is_chosen() -> None:
    options = choose(
        report(
            row("codec_decode", "fp32", 400),
            row("codec_decode", "fp16", 200, seconds=0.5),
            row("codec_decode", "int8", 100, "fail"),
            row("embed_text", "fp32", 400),
            row("embed_text", "fp8", 100, seconds=3.0),
            row("embed_text", "int8", 100, seconds=2.0),
        )
    )
    assert [(o.graph, o.precision) for o in options if o.chosen] == [
        ("codec_decode", "fp16"),
        ("embed_text", "int8"),
    ]
    assert len(options) == 6
    assert options[1].as_dict()["ms"] == 50.0


def test_of_files_that_differ_by_names_alone_the_faster_is_chosen() -> None:
    rows = [
        row("embed_text", "fp32", 40_000),
        row("embed_text", "int8", 10_078, seconds=1.0),
        row("embed_text", "fp8", 10_000, seconds=9.0),
        row("embed_text", "fp16", 10_200, seconds=0.1),
    ]
    assert [o.precision for o in choose(report(*rows)) if o.chosen] == ["int8"]


def test_what_was_not_compared_is_no_option() -> None:
    absent = Row(Subject("torch-ort", "embed_text", "int8"), "not run", "not exported")
    (option,) = choose(report(row("embed_text", "fp32", 4), absent))
    assert option.chosen and option.precision == "fp32"


def test_a_graph_that_passes_in_nothing_ends_the_export() -> None:
    with pytest.raises(ParityFailed, match="embed_text passes parity in no precision: fp32: beca"):
        choose(report(row("embed_text", "fp32", 4, "fail")))


def test_the_others_leave_the_bundle_and_auto_means_the_chosen(bundle: Bundle) -> None:
    for name in ONNX:
        for precision in ("fp16", "int8"):
            add_onnx(bundle, name, precision)
    bundle.save()
    with pytest.raises(ConfigError, match="no precision assigned to embed_text"):
        resolve(bundle, "embed_text", AUTO)
    sizes = {"fp32": 400, "fp16": 200}
    rows = [row("codec_decode", p, size) for p, size in sizes.items()]
    rows += [row("embed_text", p, size) for p, size in (sizes | {"int8": 100}).items()]
    keep_chosen(bundle, choose(report(*rows)))
    left = open_bundle(bundle.root)  # verifies the whole folder
    assert [(a.graph, a.precision) for a in left.artefacts(role="onnx")] == [
        ("codec_decode", "fp16"),
        ("codec_decode", "fp32"),
        ("embed_text", "fp32"),
        ("embed_text", "int8"),
    ]
    assert resolve(left, "embed_text", AUTO) == "int8"
    assert resolve(left, "codec_decode", AUTO) == "fp16"
    assert resolve(left, "codec_decode", "fp32") == "fp32"
