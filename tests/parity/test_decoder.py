"""Samplers below fp32: pictures are judged on the codes that they drew."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from mmprod.bundle import Bundle
from mmprod.graphs.runner import Array, Runner, example_inputs
from mmprod.graphs.spec import GraphSpec
from mmprod.parity.candidates import Candidate
from mmprod.parity.cases import Case
from mmprod.parity.check import check_graph
from mmprod.parity.decoder import decoding
from mmprod.parity.report import Row, Subject
from tests.parity.toy import SPECS, FakeRunner, decode

SAMPLER = SPECS["text_to_image"]
SHOWN = "pixels of its own codes"


def drawing(shift: int, level: int = 0) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """A sampler: codes from the noise, moved by `shift`, and their picture, off by `level`."""

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        codes = ((24 * inputs["noise"][:, 0]).astype(np.int32) + shift) % 24
        pixels = decode({"codes": codes})["pixels"].astype(int)
        return {"pixels": np.abs(pixels - level).astype(np.uint8), "codes": codes}

    return run


def candidate(shift: int, level: int, precision: str) -> Candidate:
    runner = FakeRunner(SAMPLER, drawing(shift, level))
    return Candidate(Subject("torch-ort", SAMPLER.name, precision), lambda: runner)


def reference(spec: GraphSpec) -> Runner:
    return FakeRunner(spec, decode)


def judge(
    bundle: Bundle,
    made: Candidate,
    source: Callable[[GraphSpec], Runner] | None = reference,
) -> Row:
    inputs = example_inputs(SAMPLER, 4, seed=0)
    cases = [Case("noise", inputs, drawing(0)(inputs), {"batch": 4})]
    with decoding(bundle, SAMPLER, [made], source, lambda item: item) as ready:
        (row,) = check_graph(SAMPLER, cases, None, ready)
    return row


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
@pytest.mark.parametrize("source", [reference, None], ids=["live", "stored"])
def test_a_moved_draw_hides_no_fault_of_the_decoder(
    bundle: Bundle, precision: str, source: Callable[[GraphSpec], Runner] | None
) -> None:
    for level, good in ((0, True), (40, False)):
        row = judge(bundle, candidate(1, level, precision), source)
        shown = next(output for output in row.outputs if output.name == SHOWN)
        assert all(check.ok for check in shown.checks) is good
        assert row.status == "fail" and "agreement 0 " in row.reason  # every draw differs
        assert (SHOWN in row.reason) is not good


def test_the_same_codes_with_the_same_picture_pass(bundle: Bundle) -> None:
    assert judge(bundle, candidate(0, 0, "int8")).status == "pass"


def test_one_moved_draw_in_every_sample_leaves_half_precision_judged(bundle: Bundle) -> None:
    """As on a grid of a real size, where hardly a sample keeps all its ids."""

    def one_moved(inputs: Mapping[str, Array]) -> dict[str, Array]:
        codes = drawing(0)(inputs)["codes"]
        codes[:, 0] = (codes[:, 0] + 1) % 24
        return {"codes": codes, **decode({"codes": codes})}

    runner = FakeRunner(SAMPLER, one_moved)
    row = judge(bundle, Candidate(Subject("torch-ort", SAMPLER.name, "fp16"), lambda: runner))
    assert row.status == "pass", row.reason
    assert SHOWN in [output.name for output in row.outputs]


def test_fp32_keeps_samples_whose_draws_are_all_equal(bundle: Bundle) -> None:
    row = judge(bundle, candidate(1, 0, "fp32"))
    assert "no sample has equal codes" in row.reason
    assert SHOWN not in [output.name for output in row.outputs]


def test_without_a_decoder_nothing_is_known_of_the_pictures(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    for artefact in bundle.artefacts(graph="codec_decode"):
        bundle.remove(bundle.path(artefact))
    row = judge(bundle, candidate(1, 0, "int8"), None)
    assert "no sample has equal codes" in row.reason
    assert "no codec_decode in fp32" in caplog.text


def test_a_decoder_that_fails_is_the_fault_of_the_reference(bundle: Bundle) -> None:
    def broken(inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise RuntimeError("no decoder today")

    row = judge(bundle, candidate(1, 0, "int8"), lambda spec: FakeRunner(spec, broken))
    assert row.status == "fail"
    assert "the reference failed" in row.reason and "no decoder today" in row.reason


def test_the_decoder_is_closed_and_only_opened_where_it_is_needed(bundle: Bundle) -> None:
    opened: list[FakeRunner] = []

    def source(spec: GraphSpec) -> Runner:
        opened.append(FakeRunner(spec, decode))
        return opened[-1]

    judge(bundle, candidate(0, 0, "fp32"), source)
    assert opened == []
    judge(bundle, candidate(0, 0, "fp8"), source)
    assert [runner.closed for runner in opened] == [1]
