"""Measuring a bundle of small graphs: what gets figures, what is void, what does not run here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmprod.bench.child import Task
from mmprod.bench.edges import Edges
from mmprod.bench.figures import Row, Timing, times_as_fast
from mmprod.bench.process import SubjectFailed, SubjectProcess
from mmprod.bench.run import Out, Settings, _check, _Lane, run_bench
from mmprod.bench.subjects import Kind, Subject, find_subjects
from mmprod.bundle import Bundle, open_bundle
from mmprod.bundle.proof import NO_PASS
from mmprod.data.tokenizer import train_tokenizer
from mmprod.errors import ConfigError, IntegrityError
from mmprod.graphs.runner import example_inputs
from mmprod.parity.run import run_parity
from mmprod.parity.standing import standing_rows
from tests.parity.answers import FakeRunner
from tests.parity.toy import DIMS, SPECS, decode, make_toy

QUICK = Settings(batches=(1, 3), warmup=1, runs=4, rounds=2, timeout_s=60)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """codec_decode and embed_text in fp32, compared with their stored outputs."""
    made = make_toy(tmp_path / "bundle")
    run_parity(made)
    return open_bundle(made.root)


def subjects_of(bundle: Bundle, *asked: Any) -> dict[str, list[Subject]]:
    return find_subjects(bundle, standing_rows(bundle), *asked)


def test_a_passed_graph_gets_figures(bundle: Bundle) -> None:
    report = run_bench(bundle, subjects_of(bundle, ["codec_decode"]), QUICK)
    assert [(r.subject.name, r.batch, r.status) for r in report.rows] == [
        ("onnxruntime fp32", 1, "measured"),
        ("onnxruntime fp32", 3, "measured"),
    ]
    for row in report.rows:
        assert row.graph is not None
        assert row.end_to_end is not None  # a picture comes out
        assert row.graph.runs == row.end_to_end.runs == QUICK.runs
        assert row.graph.p50_ms <= row.graph.p90_ms <= row.graph.p99_ms
        assert row.peak_bytes > 2**20
        assert row.backend.startswith("onnxruntime")
        assert row.subject.files == {a.path: a.sha256 for a in bundle.artefacts(role="onnx")[:1]}
    assert report.machine["processor"]


def test_a_file_that_changed_after_its_pass_is_void(bundle: Bundle) -> None:
    (graph,) = bundle.artefacts(role="onnx", graph="codec_decode")
    path = bundle.path(graph)
    path.write_bytes(path.read_bytes() + b"\x42\x02hi")  # a field that nobody reads
    bundle.add(path, role="onnx", graph="codec_decode", precision="fp32")
    bundle.save()
    rows = run_bench(bundle, subjects_of(bundle), QUICK).rows
    by_graph = {row.subject.graph: row for row in rows}
    assert by_graph["codec_decode"].status == "void"
    assert by_graph["codec_decode"].reason == NO_PASS
    assert by_graph["codec_decode"].graph is None
    assert by_graph["embed_text"].status == "measured"


def test_a_file_that_changes_after_its_hash_was_read_is_refused(bundle: Bundle) -> None:
    subjects = subjects_of(bundle, ["codec_decode"])
    (graph,) = bundle.artefacts(role="onnx", graph="codec_decode")
    path = bundle.path(graph)
    path.write_bytes(path.read_bytes() + b"\x42\x02hi")
    with pytest.raises(IntegrityError, match="codec_decode"):
        run_bench(bundle, subjects, QUICK)


def test_a_graph_that_failed_parity_is_void(bundle: Bundle) -> None:
    summary = bundle.summaries["parity"]
    for row in summary["rows"]:
        if row["graph"] == "embed_text":
            row["status"], row["reason"] = "fail", "cosine 0.2"
    bundle.put_summary("parity", summary)
    (row,) = run_bench(bundle, subjects_of(bundle, ["embed_text"]), Settings(batches=(1,))).rows
    assert row.status == "void"
    assert "cosine 0.2" in row.reason


def test_a_pass_under_other_limits_is_void(bundle: Bundle) -> None:
    bundle.summaries["parity"]["limits_sha256"] = "0" * 64
    subjects = subjects_of(bundle)
    assert {s.void for found in subjects.values() for s in found} == {NO_PASS}


def test_a_file_that_changes_before_a_process_opens_it_is_refused(bundle: Bundle) -> None:
    """Whoever measured has verified it; the process that opens it looks again."""
    (subject,) = subjects_of(bundle, ["codec_decode"])["codec_decode"]
    path = subject.paths["codec_decode"]
    task = replace(_task(bundle, path), files=dict(subject.files))
    path.write_bytes(path.read_bytes() + b"\x42\x02hi")
    with (
        pytest.raises(IntegrityError, match="changed while it was being opened"),
        SubjectProcess(task, 60),
    ):
        pass


def test_an_engine_without_a_device_is_not_run(bundle: Bundle) -> None:
    plan = bundle.root / "engines" / "rtx-sm86" / "codec_decode.fp32.plan"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(b"plan")
    bundle.add(plan, role="engine", graph="codec_decode", precision="fp32")
    rows = run_bench(
        bundle,
        subjects_of(bundle, ["codec_decode"]),
        Settings(batches=(1,)),
    ).rows
    found = {row.subject.name: row for row in rows}
    engine = found["engine fp32 rtx-sm86"]
    assert engine.status in ("not run", "void")
    assert engine.reason
    assert engine.graph is None
    assert found["onnxruntime fp32"].status == "measured"


@pytest.mark.parametrize(
    ("graphs", "precisions"), [(["nonsense"], []), (["joint"], []), ([], ["fp8"])]
)
def test_what_the_bundle_does_not_hold(
    graphs: list[str], precisions: list[str], bundle: Bundle
) -> None:
    with pytest.raises(ConfigError, match="holds nothing for"):
        subjects_of(bundle, graphs, precisions)


def test_peers_are_those_asked_for(bundle: Bundle) -> None:
    def kinds(*peers: str) -> list[str]:
        (found,) = find_subjects(
            bundle, standing_rows(bundle), ["codec_decode"], [], {"weights": "0" * 64}, peers
        ).values()
        return [subject.kind for subject in found]

    assert kinds() == ["onnxruntime", "torch eager", "torch compile"]
    assert kinds("eager", "loop") == ["onnxruntime", "torch eager"]
    with pytest.raises(ConfigError, match="nothing for --peers jax"):
        kinds("jax")


def test_a_batch_outside_the_graph_table(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="1 to 16, not 17"):
        run_bench(bundle, subjects_of(bundle), Settings(batches=(17,)))
    assert Settings().sizes(SPECS["joint"]) == (1, 4, 16)


def test_one_that_fails_in_the_middle_leaves_the_others_their_figures(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = SubjectProcess.ask

    def failing(self: SubjectProcess, **request: Any) -> Mapping[str, Any]:
        if self._task.graph == "embed_text" and "runs" in request:
            raise IntegrityError("ONNX Runtime could not run it", hint="mmprod bundle verify")
        return ask(self, **request)

    monkeypatch.setattr(SubjectProcess, "ask", failing)
    rows = run_bench(bundle, subjects_of(bundle), replace(QUICK, batches=(1,))).rows
    found = {row.subject.graph: (row.status, row.reason) for row in rows}
    assert found["embed_text"] == ("not run", "ONNX Runtime could not run it")
    assert found["codec_decode"] == ("measured", "")


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        (None, ("not run", "the fp32 graph was not measured: add it to --precision")),
        (("void", NO_PASS), ("void", f"{NO_PASS} for the fp32 graph to hold it against")),
        (("not run", "why"), ("not run", "the fp32 graph to hold it against did not run: why")),
    ],
)
def test_pytorch_alone_says_what_became_of_the_fp32_graph(out: Out, expected: Out) -> None:
    peer = _Lane(Subject("torch eager", "codec_decode", "fp32"))
    half = _Lane(Subject("onnxruntime", "codec_decode", "fp16"))
    own = [_Lane(Subject("onnxruntime", "codec_decode", "fp32"), out=out)] if out else []
    _check(SPECS["codec_decode"], [*own, half, peer], 1)
    assert peer.out == expected


def test_host_loops_are_for_the_precisions_that_can_agree(bundle: Bundle) -> None:
    for precision in ("fp32", "fp16", "bf16", "int8"):
        for graph in ("text_to_image", "fusion_step", "codec_decode"):
            path = bundle.root / f"onnx/{graph}.{precision}.onnx"
            path.write_bytes(b"graph")
            bundle.add(path, role="onnx", graph=graph, precision=precision)
    found = subjects_of(bundle, ["text_to_image"], [], {}, ["loop"])["text_to_image"]
    loops = [subject.precision for subject in found if subject.kind == "host loop"]
    assert sorted(loops) == ["fp16", "fp32"]


def _task(bundle: Bundle, path: Path, kind: str = "onnxruntime") -> Task:
    paths = {"codec_decode": str(path)}
    return Task(str(bundle.root), kind, "codec_decode", "fp32", paths, {}, "", 1, ((), ()))


def test_a_subject_that_is_too_slow_is_given_up(bundle: Bundle) -> None:
    task = _task(bundle, bundle.path(bundle.artefacts(role="onnx")[0]))
    with pytest.raises(SubjectFailed, match="no answer within"):
        SubjectProcess(task, 0.001).__enter__()


def test_what_a_subject_raises_is_raised_here(bundle: Bundle) -> None:
    with pytest.raises(IntegrityError, match="missing"):
        SubjectProcess(_task(bundle, bundle.root / "no.onnx"), 60).__enter__()
    with pytest.raises(SubjectFailed, match=r"TypeError|ValueError|KeyError"):
        SubjectProcess(_task(bundle, bundle.root, "host loop"), 60).__enter__()


def test_figures_of_known_times() -> None:
    timing = Timing.of([0.01 * n for n in range(1, 102)], batch=4)
    assert timing.p50_ms == pytest.approx(510)
    assert timing.p90_ms == pytest.approx(910)
    assert timing.p99_ms == pytest.approx(1000)
    assert timing.samples_per_s == pytest.approx(4 / 0.51)


def _row(kind: Kind, p50_ms: float, precision: str = "fp32", batch: int = 1) -> Row:
    timing = Timing.of([p50_ms / 1e3], batch)
    return Row(Subject(kind, "text_to_image", precision), batch, "measured", graph=timing)


def test_graphs_are_compared_with_their_peers_of_the_same_batch() -> None:
    own, half = _row("onnxruntime", 10), _row("onnxruntime", 8, "fp16")
    rows = [
        own,
        half,
        _row("onnxruntime", 99, batch=4),
        _row("torch eager", 20),
        _row("torch eager", 99, batch=4),
        replace(_row("torch compile", 5), status="void", graph=None),
        _row("host loop", 12),
        _row("host loop", 16, "fp16"),
    ]
    assert times_as_fast(own, rows) == {"torch eager": 2, "host loop": 1.2}
    assert times_as_fast(half, rows) == {"torch eager": 2.5, "host loop": 2, "fp32 graph": 1.25}
    assert times_as_fast(rows[3], rows) == {}


def test_end_to_end_goes_from_picture_files_to_picture_files() -> None:
    spec = SPECS["codec_decode"]
    edges = Edges(spec, DIMS.vocabulary, None)
    runner = FakeRunner(spec, decode)
    files = edges(runner, edges.given(2, 0), 0)["pixels"]
    assert isinstance(files, list)
    assert [file[:4] for file in files] == [b"\x89PNG"] * 2
    encode = SPECS["codec_encode"]
    seen = {}

    def keep(inputs):  # type: ignore[no-untyped-def]
        seen.update(inputs)
        return {"codes": np.zeros((2, 4), np.int32)}

    inner = Edges(encode, DIMS.vocabulary, None)
    inner(FakeRunner(encode, keep), inner.given(2, 0), 0)
    np.testing.assert_array_equal(seen["pixels"], example_inputs(encode, 2, 0)["pixels"])


def test_graphs_between_codes_have_no_edge() -> None:
    tokenizer = train_tokenizer(["red hair"] * 3, 300)
    for name, edge in (("fusion_step", False), ("embed_image", False), ("embed_text", True)):
        assert Edges(SPECS[name], DIMS.vocabulary, tokenizer).exist is edge
    assert not Edges(SPECS["embed_text"], DIMS.vocabulary, None).exist
