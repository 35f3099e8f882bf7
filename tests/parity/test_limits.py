"""The table of limits: complete, explained, and applied in the right direction."""

from __future__ import annotations

import json

import pytest

from mmprod.errors import ConfigError
from mmprod.graphs.spec import GraphSpec, Tensor
from mmprod.parity.compare import FIGURES
from mmprod.parity.limits import LIMITS, PRECISIONS, Limit, check, limits_for, limits_table
from tests.parity.toy import SPECS


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_output_of_every_graph_has_limits(precision: str) -> None:
    assert precision in PRECISIONS
    used = set()
    for spec in SPECS.values():
        for output in spec.outputs:
            assert limits_for(spec, output, precision)
            used.add((output.role, precision, "sampler" if spec.loop_steps else "plain"))
    assert used == {key for key in LIMITS if key[1] == precision}, "a limit nobody uses"


def test_limits_name_known_figures_and_say_why() -> None:
    for limits in LIMITS.values():
        for limit in limits:
            assert limit.figure in FIGURES
            assert len(limit.reason.split()) >= 5
            assert check(limit, limit.perfect).ok, "equal outputs must pass"
    assert json.loads(json.dumps(limits_table(), allow_nan=False)) == limits_table()


def test_half_precision_is_never_held_to_more_than_fp32() -> None:
    for (role, precision, kind), limits in LIMITS.items():
        if precision != "fp16":
            continue
        strict = {limit.figure: limit for limit in LIMITS[role, "fp32", kind]}
        for limit in limits:
            if limit.figure in strict:
                assert check(limit, strict[limit.figure].value).ok


def test_samplers_have_limits_of_their_own() -> None:
    encode, sample = SPECS["codec_encode"], SPECS["text_to_image"]
    (plain,) = limits_for(encode, encode.output("codes"), "fp16")
    (free,) = limits_for(sample, sample.output("codes"), "fp16")
    assert plain.value > free.value


def test_a_precision_without_limits_is_refused() -> None:
    spec = SPECS["codec_encode"]
    with pytest.raises(ConfigError, match="no parity limits for codes in int3") as caught:
        limits_for(spec, spec.outputs[0], "int3")
    assert "fp32" in caught.value.hint


def test_a_role_without_limits_is_refused() -> None:
    mask = Tensor("mask", "uint8", (2,), "mask")
    with pytest.raises(ConfigError, match="mask"):
        limits_for(GraphSpec("g", (mask,), (mask,), ""), mask, "fp32")


@pytest.mark.parametrize(
    ("limit", "value", "ok", "used"),
    [
        (Limit("max_abs", "<=", 0.5, ""), 0.0, True, 0.0),
        (Limit("max_abs", "<=", 0.5, ""), 0.5, True, 1.0),
        (Limit("max_abs", "<=", 0.5, ""), 0.75, False, 1.5),
        (Limit("agreement", ">=", 0.9, "", 1.0), 0.95, True, 0.5),
        (Limit("agreement", ">=", 0.9, "", 1.0), 0.8, False, 2.0),
        (Limit("agreement", ">=", 1.0, "", 1.0), 1.0, True, 0.0),
        (Limit("agreement", ">=", 1.0, "", 1.0), 0.999, False, None),
        (Limit("psnr", ">=", 40.0, "", 100.0), 70.0, True, 0.5),
    ],
)
def test_check(limit: Limit, value: float, ok: bool, used: float | None) -> None:
    result = check(limit, value)
    assert result.ok is ok
    assert result.used == (None if used is None else pytest.approx(used))
    assert (result.margin >= 0) is ok
    assert limit.figure in str(result) and limit.bound in str(result)


def test_a_figure_that_is_no_number_fails() -> None:
    assert not check(Limit("max_abs", "<=", 0.5, ""), float("nan")).ok
    assert not check(Limit("agreement", ">=", 0.5, "", 1.0), float("nan")).ok
