"""One graph, many candidates: crashes, defects, limits, absent devices, each with its verdict."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from mmprod.errors import EnvironmentMissing, IntegrityError
from mmprod.graphs.runner import Array, Runner, example_inputs
from mmprod.manifest import FileEntry
from mmprod.parity.candidates import Candidate
from mmprod.parity.cases import Case, generated_cases
from mmprod.parity.check import check_graph
from mmprod.parity.report import Row, Subject
from tests.parity.toy import SPECS, FakeRunner, Function, decode

SPEC = SPECS["codec_decode"]
SAMPLER = SPECS["image_to_text"]
FILES = (FileEntry("onnx/x.onnx", "0" * 64, 1),)


def candidate(function: Function, precision: str = "fp32") -> tuple[Candidate, FakeRunner]:
    runner = FakeRunner(SPEC, function, "fake 1.0")
    subject = Subject("torch-ort", SPEC.name, precision, files=FILES)
    return Candidate(subject, lambda: runner), runner


def cases(count: int = 3) -> Iterator[Case]:
    return generated_cases(SPEC, (2,), count)


def judge(function: Function, precision: str = "fp32", reference: Function = decode) -> Row:
    made, runner = candidate(function, precision)
    other = FakeRunner(SPEC, reference)
    (row,) = check_graph(SPEC, cases(), other, [made])
    assert runner.closed == 1 and other.closed == 0
    assert row.subject is made.subject
    assert row.reason and "\n" not in row.reason
    assert bool(row.advice) is (row.status != "pass")
    return row


def changed(level: int) -> Function:
    """The picture with one colour value of the last sample moved."""

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        pixels = decode(inputs)["pixels"].copy()
        value = int(pixels[-1, 1, 2, 0])
        pixels[-1, 1, 2, 0] = value + level if value + level < 256 else value - level
        return {"pixels": pixels}

    return run


def replacing(pixels: object) -> Function:
    return lambda inputs: {"pixels": pixels}  # type: ignore[dict-item]


def test_an_equal_candidate_passes() -> None:
    row = judge(decode)
    assert row.status == "pass"
    assert row.backend == "fake 1.0"
    assert (row.cases, row.samples) == (4, 16 + 3 * 2), "the sweep and three seeds"
    assert "closest to its limit: pixels max_level 0 <= 1" in row.reason
    assert row.outputs[0].figures["psnr"] == 100


def test_one_level_is_within_the_limit_and_two_are_not() -> None:
    assert judge(changed(1)).status == "pass"
    row = judge(changed(2))
    assert row.status == "fail"
    assert "pixels max_level 2 <= 1 is not met" in row.reason
    assert "worst at sweep 0 [15, 1, 2, 0]" in row.reason
    assert row.cases == 4, "limits are judged over all cases"
    assert not row.outputs[0].ok


def test_half_precision_has_its_own_limits() -> None:
    assert judge(changed(2), "fp16").status == "pass"
    assert judge(changed(60), "fp16").status == "fail"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (replacing(np.zeros((16, 4, 4, 3), np.float32)), "candidate: pixels is float32"),
        (replacing(np.zeros((1, 4, 4, 3), np.uint8)), "candidate: pixels has shape"),
        (replacing(None), "candidate: pixels is NoneType"),
        (lambda inputs: {}, "candidate: outputs are []"),
        (lambda inputs: {**decode(inputs), "more": np.zeros(1)}, "['more', 'pixels']"),
    ],
)
def test_outputs_that_cannot_be_compared_fail_and_end_the_trial(
    function: Function, message: str
) -> None:
    row = judge(function)
    assert row.status == "fail"
    assert message in row.reason and row.reason.startswith("sweep 0: ")
    assert row.cases == 1


def test_a_crash_fails_its_row_alone_and_keeps_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def crash(inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise RuntimeError("out of\nluck")

    broken, _ = candidate(crash)
    good, runner = candidate(decode)
    with caplog.at_level(logging.ERROR, "mmprod"):
        rows = check_graph(SPEC, cases(), FakeRunner(SPEC, decode), [broken, good])
    assert [row.status for row in rows] == ["fail", "pass"]
    assert rows[0].reason == "sweep 0: crashed: RuntimeError: out of luck"
    assert runner.calls == 4
    (record,) = caplog.records
    assert record.exc_info is not None and "test_check.py" in str(record.exc_text)


def test_an_expected_error_is_told_by_its_message_and_hint() -> None:
    def refuse(inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise IntegrityError("the graph gave up", hint="export again")

    row = judge(refuse)
    assert row.reason == "sweep 0: crashed: the graph gave up"
    assert row.advice == "export again"


def test_an_interrupt_is_not_taken_for_a_crash() -> None:
    def interrupt(inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise KeyboardInterrupt

    made, runner = candidate(interrupt)
    with pytest.raises(KeyboardInterrupt):
        check_graph(SPEC, cases(), FakeRunner(SPEC, decode), [made])
    assert runner.closed == 1


def test_an_absent_device_is_not_run_with_its_reason() -> None:
    def no_device() -> Runner:
        raise EnvironmentMissing("not run: no CUDA device", hint="run it on the device")

    def no_package() -> Runner:
        raise EnvironmentMissing("onnxruntime is not installed", hint="pip install it")

    engine = Subject("torch-engine", SPEC.name, "fp16", "rtx-sm86", FILES)
    graph = Subject("torch-ort", SPEC.name, "fp16", files=FILES)
    absent = [Candidate(engine, no_device), Candidate(graph, no_package)]
    reference = FakeRunner(SPEC, decode)
    rows = check_graph(SPEC, cases(), reference, absent)
    assert [row.status for row in rows] == ["not run", "not run"]
    assert rows[0].reason == "built for sm86, not run: no CUDA device"
    assert rows[0].advice == "run it on the device"
    assert rows[1].reason == "onnxruntime is not installed"
    assert reference.calls == 0, "nothing to compare, so nothing is computed"


def test_a_file_that_cannot_be_opened_is_a_failure() -> None:
    def damaged() -> Runner:
        raise IntegrityError("no ONNX graph", hint="copy it again")

    def bug() -> Runner:
        raise KeyError("x")

    subject = Subject("torch-ort", SPEC.name, "fp32")
    made = [Candidate(subject, damaged), Candidate(subject, bug)]
    rows = check_graph(SPEC, cases(), FakeRunner(SPEC, decode), made)
    assert [row.status for row in rows] == ["fail", "fail"]
    assert rows[0].reason == "cannot be opened: no ONNX graph"
    assert "KeyError" in rows[1].reason


def test_a_reference_that_fails_is_no_pass() -> None:
    def crash(inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise RuntimeError("no memory")

    row = judge(decode, reference=crash)
    assert row.status == "fail"
    assert "the reference failed: RuntimeError: no memory" in row.reason
    row = judge(decode, reference=lambda inputs: {"pixels": np.zeros((0, 4, 4, 3), np.uint8)})
    assert row.status == "fail" and "reference: pixels has shape" in row.reason


def test_no_cases_is_not_run_and_never_a_pass() -> None:
    made, _ = candidate(decode)
    (row,) = check_graph(SPEC, [], None, [made])
    assert row.status == "not run" and "no stored cases" in row.reason
    assert "--against" in row.advice


def test_without_a_reference_the_stored_outputs_count() -> None:
    inputs = example_inputs(SPEC, 2, 0)
    wrong = {"pixels": 255 - decode(inputs)["pixels"]}
    for outputs, status in ((decode(inputs), "pass"), (wrong, "fail"), (None, "fail")):
        made, _ = candidate(decode)
        case = Case("stored b2", inputs, outputs, {"batch": 2})
        (row,) = check_graph(SPEC, [case], None, [made])
        assert row.status == status


def test_the_reference_runs_once_per_case_for_all_candidates() -> None:
    made = [candidate(decode)[0], candidate(changed(1))[0], candidate(decode, "fp16")[0]]
    reference = FakeRunner(SPEC, decode)
    seen: list[str] = []
    check_graph(SPEC, cases(), reference, made, lambda case: seen.append(case.name))
    assert reference.calls == 4
    assert seen == ["sweep 0", "noise b2 seed 0", "noise b2 seed 1", "noise b2 seed 2"]


def test_samplers_report_where_they_first_diverge() -> None:
    def tokens(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"tokens": (inputs["noise"][:, 0] * 20).astype(np.int32)}

    def late(inputs: Mapping[str, Array]) -> dict[str, Array]:
        got = tokens(inputs)["tokens"].copy()
        if len(got) == 8:
            got[1, 2] = (got[1, 2] + 1) % 20
        return {"tokens": got}

    subject = Subject("torch-ort", SAMPLER.name, "fp32")
    made = Candidate(subject, lambda: FakeRunner(SAMPLER, late))
    stream = generated_cases(SAMPLER, (1, 8), 4)
    (row,) = check_graph(SAMPLER, stream, FakeRunner(SAMPLER, tokens), [made])
    assert row.status == "fail"
    (output,) = row.outputs
    assert output.first is not None
    assert (output.first.case, output.first.index) == ("noise b8 seed 0", (1, 2))
    assert output.figures == {"agreement": 1 - 4 / (36 * 3), "differing_samples": 4}
    half = Candidate(Subject("torch-ort", SAMPLER.name, "fp16"), made.open)
    stream = generated_cases(SAMPLER, (1, 8), 4)
    (row,) = check_graph(SAMPLER, stream, FakeRunner(SAMPLER, tokens), [half])
    assert row.status == "pass" and "agreement 0.962963 >= 0.94" in row.reason


def painted(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """A sampler that draws codes from the noise and decodes them."""
    codes = (inputs["noise"][:, 0] * 24).astype(np.int32)
    return {**decode({"codes": codes}), "codes": codes}


def judge_painter(function: Function, precision: str) -> Row:
    spec = SPECS["text_to_image"]
    subject = Subject("torch-ort", spec.name, precision)
    made = Candidate(subject, lambda: FakeRunner(spec, function))
    stream = generated_cases(spec, (8,), 2)
    (row,) = check_graph(spec, stream, FakeRunner(spec, painted), [made])
    return row


def test_a_moved_draw_of_a_sampler_is_not_held_against_its_decoder() -> None:
    def moved(inputs: Mapping[str, Array]) -> dict[str, Array]:
        codes = painted(inputs)["codes"].copy()
        codes[3] = (codes[3] + 1) % 24
        return {**decode({"codes": codes}), "codes": codes}

    row = judge_painter(moved, "fp16")
    everywhere, equal, codes = row.outputs
    assert row.status == "pass"
    assert codes.figures == {"agreement": 7 / 8, "differing_samples": 2}
    assert everywhere.figures["max_level"] > 8 and not everywhere.checks
    assert equal.name == "pixels of equal codes" and equal.figures["max_level"] == 0
    assert judge_painter(moved, "fp32").status == "fail"


def test_a_damaged_decoder_of_a_sampler_is_seen_beside_moved_draws() -> None:
    def damaged(inputs: Mapping[str, Array]) -> dict[str, Array]:
        codes = painted(inputs)["codes"].copy()
        codes[0, 0] = (codes[0, 0] + 1) % 24
        pixels = decode({"codes": codes})["pixels"].copy()
        pixels[5] ^= 16
        return {"pixels": pixels, "codes": codes}

    row = judge_painter(damaged, "fp16")
    assert row.status == "fail"
    assert "pixels of equal codes max_level 16 <= 8 is not met" in row.reason
    assert "noise b8 seed 0 [5, 0, 0, 0]" in row.reason, "the sample's number in the whole batch"


def test_a_sampler_that_never_agrees_fails_by_its_ids() -> None:
    def other(inputs: Mapping[str, Array]) -> dict[str, Array]:
        codes = (painted(inputs)["codes"] + 1) % 24
        return {**decode({"codes": codes}), "codes": codes}

    row = judge_painter(other, "fp16")
    assert row.status == "fail" and row.reason.startswith("codes agreement 0 >= 0.7 ")
    assert [output.name for output in row.outputs] == ["pixels", "codes"]


def test_a_decoder_that_no_sample_shows_is_no_pass() -> None:
    """Every sample has one moved draw: the ids are within limits, the pictures are black."""

    def black(inputs: Mapping[str, Array]) -> dict[str, Array]:
        codes = painted(inputs)["codes"].copy()
        codes[:, 0] = (codes[:, 0] + 1) % 24
        return {"pixels": np.zeros((len(codes), 4, 4, 3), np.uint8), "codes": codes}

    row = judge_painter(black, "fp16")
    assert row.outputs[-1].ok and row.outputs[-1].figures["agreement"] == 0.75
    assert row.status == "fail"
    assert row.reason == ("pixels of equal codes: nothing to judge, no sample has equal codes")


def test_memory_stays_flat_over_many_cases() -> None:
    """No case, input or output may outlive its turn."""
    alive: list[weakref.ref[Array]] = []
    most = 0

    def stream() -> Iterator[Case]:
        for case in generated_cases(SPEC, (2,), 12):
            alive.append(weakref.ref(case.inputs["codes"]))
            yield case

    def watch(case: Case) -> None:
        nonlocal most
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))

    made, _ = candidate(decode)
    check_graph(SPEC, stream(), FakeRunner(SPEC, decode), [made], watch)
    assert len(alive) == 13 and most <= 2
