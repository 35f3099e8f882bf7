"""The table of limits: complete, explained, and applied in the right direction."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from mmprod.errors import ConfigError
from mmprod.parity.compare import FIGURES, compare
from mmprod.parity.limits import (
    LIMITS,
    PRECISIONS,
    TIES,
    Limit,
    check,
    kind_of,
    limits_for,
    limits_table,
    tie_of,
)
from mmprod.parity.measure import measures_of
from mmprod.parity.render import render_limit
from tests.parity.toy import SPECS


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_every_output_of_every_graph_is_judged(precision: str) -> None:
    assert precision in PRECISIONS
    used = set()
    for spec in SPECS.values():
        judged = {m.tensor.name for m in measures_of(spec) if m.limits}
        assert judged == {tensor.name for tensor in spec.outputs}
        for measure in measures_of(spec):
            if measure.limits:
                for ranked in (False, True):
                    role = measure.tensor.role
                    kind = kind_of(measure.limits, role, precision, ranked)
                    assert limits_for(role, precision, kind)
                    used.add((role, precision, kind))
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
        exact = kind_of(kind, role, "fp32", kind == "ranked")
        strict = {limit.figure: limit for limit in LIMITS[role, "fp32", exact]}
        for limit in limits:
            if limit.figure in strict:
                assert check(limit, strict[limit.figure].value).ok


def test_samplers_have_limits_of_their_own() -> None:
    (plain,) = limits_for("codes", "fp16", "plain")
    (free,) = limits_for("codes", "fp16", "sampler")
    assert plain.value > free.value and plain.spread == 0 < free.spread
    assert limits_for("codes", "fp32", "plain") == limits_for("codes", "fp32", "sampler")


def test_scatter_is_granted_by_the_number_of_samples() -> None:
    floor = Limit("agreement", ">=", 0.8, "", 1.0, 0.6)
    assert [floor.at(n) for n in (4, 36, 3600)] == pytest.approx([0.5, 0.7, 0.79])
    assert check(floor, 0.6, 4).ok and not check(floor, 0.6, 36).ok
    assert check(floor, 0.6, 4).limit == pytest.approx(0.5)
    assert Limit("agreement", ">=", 0.8, "", 1.0, 0.6, 0.7).at(4) == 0.7
    assert Limit("max_abs", "<=", 0.1, "", 0.0, 0.2, 0.15).at(4) == 0.15
    ceiling = Limit("max_abs", "<=", 0.1, "", 0.0, 0.2)
    assert ceiling.at(4) == pytest.approx(0.2)


def test_a_few_samples_excuse_no_sampler_that_draws_something_else() -> None:
    for role, least in (("codes", 0.7), ("tokens", 0.9)):
        (limit,) = limits_for(role, "fp16", "sampler")  # type: ignore[arg-type]
        assert limit.at(1) == least and limit.at(10**6) > least
        assert f"never below {least:g}" in render_limit(limit)


def test_other_noise_is_out_however_few_the_samples() -> None:
    told = 0
    for (_, _, kind), limits in LIMITS.items():
        for limit in limits:
            if kind in ("sampler", "joint") and limit.spread:
                found = re.search(r"other noise (\d\.\d+)", limit.reason)
                assert found and limit.at(1) > float(found[1]), limit.reason
                told += 1
    assert told == 11


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_vector_of_another_length_is_out_whatever_its_direction(precision: str) -> None:
    (tensor,) = SPECS["embed_text"].outputs
    unit = np.full((2, 5), 5**-0.5, np.float32)
    figures = compare(tensor, unit, 1.5 * unit, "case").figures()
    checks = {
        limit.figure: check(limit, figures[limit.figure])
        for limit in limits_for("embedding", precision, "plain")
    }
    assert checks["cosine"].ok and not checks["max_abs"].ok


def test_what_has_no_limits_is_refused() -> None:
    with pytest.raises(ConfigError, match="no parity limits for codes in int3") as caught:
        limits_for("codes", "int3", "plain")
    assert "fp32" in caught.value.hint
    with pytest.raises(ConfigError, match="mask"):
        limits_for("mask", "fp32", "plain")


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


def test_a_tie_is_small_has_a_reason_and_grows_with_the_error_of_the_precision() -> None:
    assert all(len(reason.split()) >= 5 for _, reason in TIES.values())
    assert 2**-24 < tie_of("fp32") < tie_of("fp16") < tie_of("bf16") < 1
    assert tie_of("anything else") == 0


def test_only_plain_ids_have_limits_for_ranked_choices() -> None:
    assert kind_of("plain", "codes", "fp32", True) == "ranked"
    assert kind_of("plain", "codes", "fp32", False) == "plain"
    assert kind_of("sampler", "codes", "fp32", True) == "sampler"
    assert kind_of("plain", "pixels", "fp32", True) == "plain"
