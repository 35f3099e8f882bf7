"""Damaged graphs in bundles that verify: parity is what must notice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmprod.bundle import Bundle, open_bundle
from mmprod.errors import ConfigError
from mmprod.graphs.runner import Array
from mmprod.parity import trials
from mmprod.parity.faults import MAY_VANISH, Fault
from mmprod.parity.report import Output, Row, Subject
from mmprod.parity.run import run_parity
from mmprod.parity.sabotage import KINDS, NOISE, Damage, copy_graph, damage
from mmprod.parity.trials import Trial, run_trials
from tests.parity.toy import CODEBOOK, TO_PIXELS, numpy_reference, stored

GRAPHS = ("codec_decode", "embed_text")
FOUR = tuple(Fault(name, "numeric") for name in KINDS)


def weights(bundle: Bundle, graph: str = "codec_decode") -> dict[str, Array]:
    model = onnx.load(bundle.root / "onnx" / f"{graph}.fp32.onnx")
    return {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("live", [False, True])
def test_every_damage_verifies_and_fails_parity(
    bundle: Bundle, graph: str, kind: str, live: bool
) -> None:
    assert run_parity(bundle).ok
    damage(bundle, kind, graph)
    damaged = open_bundle(bundle.root)
    report = run_parity(damaged, reference=numpy_reference if live else None)
    assert not report.ok
    (failed,) = report.select(status="fail")
    assert failed.subject.graph == graph
    assert "FAILED" in (bundle.root / "reports" / "parity.md").read_text()
    assert not open_bundle(bundle.root).summaries["parity"]["ok"]


def test_each_damage_does_what_it_says(bundle: Bundle, tmp_path: Path) -> None:
    def after(kind: str) -> tuple[str, str, dict[str, Array]]:
        copy = copy_graph(bundle, "codec_decode", "fp32", tmp_path / kind)
        done = damage(copy, kind, "codec_decode")
        return done.weight, done.text, weights(copy)

    name, text, changed = after("zero_row")
    row = int(np.square(TO_PIXELS).sum(axis=1).argmax())
    assert (name, text) == ("to_pixels", f"row {row} set to zero")
    assert not changed["to_pixels"][row].any()
    np.testing.assert_array_equal(changed["codebook"], CODEBOOK)

    name, text, changed = after("swap_rows")
    moved = np.flatnonzero((changed["codebook"] != CODEBOOK).any(axis=1))
    assert name == "codebook" and len(moved) == 2
    np.testing.assert_array_equal(changed["codebook"][moved], CODEBOOK[moved[::-1]])
    read = np.concatenate(
        [value.ravel() for key, value in stored("codec_decode").items() if "/in/" in key]
    )
    assert set(moved) <= set(read), "rows that the stored cases read"

    name, _, changed = after("add_noise")
    noise = changed[name] - TO_PIXELS
    assert 0.5 * NOISE < noise.std() < 2 * NOISE

    name, _, changed = after("put_nan")
    assert np.isnan(changed[name]).sum() == 1


def test_a_table_laid_across_is_found_too(bundle: Bundle) -> None:
    """An encoder's search multiplies with the transposed codebook."""
    path = bundle.root / "onnx" / "codec_decode.fp32.onnx"
    model = onnx.load(path)
    book = next(w for w in model.graph.initializer if w.name == "codebook")
    book.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(CODEBOOK.T), "codebook"))
    model.graph.node.insert(0, helper.make_node("Transpose", ["codebook"], ["book"], perm=[1, 0]))
    model.graph.node[1].input[0] = "book"
    onnx.save(model, path)
    bundle.add(path, role="onnx", graph="codec_decode", precision="fp32")
    bundle.save()
    assert run_parity(bundle).ok
    damage(bundle, "swap_rows", "codec_decode")
    assert (weights(bundle)["codebook"] != CODEBOOK.T).any(axis=0).sum() == 2
    assert not run_parity(bundle).ok


def test_tables_that_are_looked_up_come_before_others_of_that_size(bundle: Bundle) -> None:
    path = bundle.root / "onnx" / "codec_decode.fp32.onnx"
    model = onnx.load(path)
    other = numpy_helper.from_array(np.ones((24, 2), np.float32), "a_table_of_places")
    model.graph.initializer.insert(0, other)
    onnx.save(model, path)
    bundle.add(path, role="onnx", graph="codec_decode", precision="fp32")
    bundle.save()
    assert damage(bundle, "swap_rows", "codec_decode").weight == "codebook"


def test_weights_read_inside_a_loop_are_found(bundle: Bundle) -> None:
    path = bundle.root / "onnx" / "codec_decode.fp32.onnx"
    model = onnx.load(path)
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["still"]),
            helper.make_node("Cast", ["to_pixels"], ["w"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["entries", "w"], ["next"]),
        ],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("last", TensorProto.FLOAT, None),
        ],
        [value("still", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, None)],
    )
    extra = {"count": np.array(2), "yes": np.array(True), "nothing": np.zeros((1, 4, 12), "f4")}
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in extra.items())
    index = next(i for i, node in enumerate(model.graph.node) if node.op_type == "MatMul")
    loop = helper.make_node("Loop", ["count", "yes", "nothing"], ["projected"], body=body)
    model.graph.node[index].CopyFrom(loop)
    onnx.save(model, path)
    bundle.add(path, role="onnx", graph="codec_decode", precision="fp32")
    bundle.save()
    assert run_parity(bundle).ok
    assert damage(bundle, "zero_row", "codec_decode").weight == "to_pixels"
    assert not run_parity(bundle).ok


def test_weights_kept_beside_the_graph_are_damaged_there(bundle: Bundle) -> None:
    path = bundle.root / "onnx" / "codec_decode.fp32.onnx"
    beside = path.with_name("codec_decode.fp32.data")
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location=beside.name, size_threshold=128
    )
    bundle.add(path, role="onnx", graph="codec_decode", precision="fp32")
    bundle.add(beside, role="onnx-data", graph="codec_decode", precision="fp32")
    bundle.save()
    assert run_parity(bundle).ok
    damage(bundle, "zero_row", "codec_decode")
    assert not run_parity(open_bundle(bundle.root)).ok


def test_requests_that_cannot_be_met_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown damage 'burn'") as caught:
        damage(bundle, "burn", "codec_decode")
    assert "zero_row" in caught.value.hint
    with pytest.raises(ConfigError, match="not exported in fp16"):
        damage(bundle, "zero_row", "codec_decode", "fp16")
    with pytest.raises(ConfigError, match="not exported in fp32"):
        copy_graph(bundle, "fusion_step", "fp32", tmp_path / "copy")
    bundle.remove(bundle.root / "reference" / "codec_decode.npz")
    with pytest.raises(ConfigError, match="fewer than two codes"):
        damage(bundle, "swap_rows", "codec_decode")


def test_a_copy_holds_one_graph_and_leaves_the_original_alone(
    bundle: Bundle, tmp_path: Path
) -> None:
    before = {a.path: a.sha256 for a in bundle.artefacts()}
    copy = copy_graph(bundle, "embed_text", "fp32", tmp_path / "copy")
    damage(copy, "zero_row", "embed_text")
    assert [artefact.path for artefact in open_bundle(copy.root).artefacts()] == [
        "onnx/embed_text.fp32.onnx",
        "reference/embed_text.npz",
    ]
    assert copy.artefacts(role="onnx")[0].meta == {"note": "kept"}
    assert {a.path: a.sha256 for a in open_bundle(bundle.root).artefacts()} == before


def test_sabotage_catches_every_damage_and_passes_the_undamaged(bundle: Bundle) -> None:
    before = (bundle.root / "bundle.json").read_bytes()
    seen: list[Trial] = []
    rows = run_trials(bundle, suite=FOUR, on_row=seen.append)
    assert tuple(seen) == rows
    assert [(row.graph, row.kind) for row in rows] == [
        (graph, kind) for graph in GRAPHS for kind in ("none", *KINDS)
    ]
    assert all(row.ok for row in rows)
    assert {row.verdict for row in rows if row.kind == "none"} == {"pass"}
    assert {row.verdict for row in rows if row.kind != "none"} == {"fail"}
    assert (bundle.root / "bundle.json").read_bytes() == before


def test_a_demanded_signature_catches_no_damage(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMPROD_TRUSTED_KEYS", str(tmp_path / "device.pub"))
    rows = run_trials(bundle, graphs=["codec_decode"], suite=FOUR)
    assert {row.caught_by for row in rows if row.kind != "none"} <= {"limits", "values"}
    assert not any("signed" in row.cause for row in rows)


def test_a_reduced_sampler_brings_the_decoder_that_judges_it(
    bundle: Bundle, tmp_path: Path
) -> None:
    for precision in ("fp32", "int8"):
        path = bundle.root / "onnx" / f"text_to_image.{precision}.onnx"
        path.write_bytes(b"a sampler")
        bundle.add(path, role="onnx", graph="text_to_image", precision=precision)
    bundle.save()
    copies = {p: copy_graph(bundle, "text_to_image", p, tmp_path / p) for p in ("fp32", "int8")}
    decoders = {p: copy.artefacts(graph="codec_decode") for p, copy in copies.items()}
    assert not decoders["fp32"]
    assert [a.path for a in decoders["int8"]] == ["onnx/codec_decode.fp32.onnx"]


def test_sabotage_tells_when_a_damage_gets_through(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_gentle(bundle: Bundle, fault: Fault, graph: str, precision: str) -> object:
        return damage(bundle, "add_noise", graph, precision)

    monkeypatch.setattr(trials, "inject", too_gentle)
    monkeypatch.setattr("mmprod.parity.sabotage.NOISE", 1e-3)
    rows = run_trials(bundle, graphs=["codec_decode"], suite=FOUR)
    through = ["within limits" if name in MAY_VANISH else "pass" for name in KINDS]
    assert [row.verdict for row in rows] == ["pass", *through], "some pixels move, by one level"
    assert [row.ok for row in rows] == [True, *(name in MAY_VANISH for name in KINDS)]


def test_sabotage_tells_when_a_damage_changes_nothing(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harmless(bundle: Bundle, fault: Fault, graph: str, precision: str) -> object:
        return damage(bundle, "add_noise", graph, precision)

    monkeypatch.setattr(trials, "inject", harmless)
    monkeypatch.setattr("mmprod.parity.sabotage.NOISE", 0.0)
    rows = run_trials(bundle, graphs=["codec_decode"], suite=FOUR)
    assert [row.verdict for row in rows] == ["pass"] + ["no effect"] * len(KINDS)
    assert {row.kind for row in rows if row.ok} == {"none", "zero_row", "add_noise"}


def test_sabotage_is_not_ok_when_the_undamaged_graph_fails(bundle: Bundle) -> None:
    damage(bundle, "zero_row", "codec_decode")
    rows = run_trials(bundle, graphs=["codec_decode"], suite=FOUR)
    assert not rows[0].ok
    with pytest.raises(ConfigError, match="no graph was exported in fp16"):
        run_trials(bundle, precision="fp16")


@pytest.mark.parametrize(
    ("precision", "graph", "blurred"),
    [
        ("fp16", "image_to_text", True),
        ("fp32", "image_to_text", False),
        ("fp16", "codec_decode", False),
    ],
)
def test_only_a_gentle_damage_may_hide_in_rounding(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, precision: str, graph: str, blurred: bool
) -> None:
    """The outputs moved, and stayed within limits."""
    subject, calls = Subject("torch-ort", graph, precision), iter(range(9))
    output = Output("tokens", "tokens", {}, (), None, None)

    def moved(*_: object) -> Row:
        figures = {"agreement": 1 - next(calls) / 100}
        return Row(subject, "pass", "agreement", outputs=(replace(output, figures=figures),))

    done = Damage("any", graph, precision, "w", "moved")
    monkeypatch.setattr(trials, "copy_graph", lambda bundle, *_: bundle)
    monkeypatch.setattr(trials, "inject", lambda *_: done)
    monkeypatch.setattr(trials, "_check", moved)
    undamaged, *rows = run_trials(bundle, graphs=[graph], precision=precision, suite=FOUR)
    assert undamaged.verdict == "pass" and undamaged.ok
    hidden = {row.kind for row in rows if row.verdict == "within limits"}
    assert hidden == (set(KINDS) if blurred else set(KINDS) & MAY_VANISH)
    assert {row.kind for row in rows if row.ok} == set(KINDS) & MAY_VANISH
    assert all("told from rounding" in row.reason for row in rows if row.kind in hidden)
