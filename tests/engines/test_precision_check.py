"""The precision check on kernels that were made up to be wrong."""

from __future__ import annotations

import dataclasses

import pytest

from mmprod.engines.layers import Kernel
from mmprod.engines.precision_check import PrecisionReport, check_engine, check_graph
from mmprod.errors import PrecisionMismatch

HALF = Kernel("product", "gemm", "t", ("Half",), ("Half",), ("Half",), ("a",))
FLOAT = Kernel("search", "gemm", "t", ("Float",), ("Float",), ("Float",), ("b",))


def check(
    asked: str, operators: dict[str, str], *kernels: Kernel, tf32: bool = False
) -> PrecisionReport:
    return check_engine(asked, operators, kernels, tf32=tf32, label="graph fp sm86")


def test_a_half_graph_may_keep_some_float_operators() -> None:
    operators = {"a": "Half", "b": "Float"}
    check_graph("fp16", operators, "graph")
    report = check("fp16", operators, HALF, FLOAT)
    assert report.share == 0.5
    assert report.in_engine == {"Half": 1, "Float": 1}
    assert report.others == ("b (Float)",)


@pytest.mark.parametrize(
    ("asked", "operators"),
    [
        ("fp16", {"a": "Half", "b": "Float", "c": "Float"}),
        ("fp16", {"a": "Half", "b": "BFloat16", "c": "Half"}),
        ("fp32", {"a": "Float", "b": "Half"}),
        ("int8", {"a": "Half", "b": "Half", "c": "Int8"}),
        ("bf16", {"a": "BFloat16", "b": "Int8"}),
    ],
)
def test_a_graph_that_is_mostly_or_partly_something_else(
    asked: str, operators: dict[str, str]
) -> None:
    with pytest.raises(PrecisionMismatch, match=f"{asked} was asked") as caught:
        check_graph(asked, operators, "graph")
    assert caught.value.exit_code == 5
    assert f"--precision {asked}" in caught.value.hint


def test_an_engine_that_widens_a_half_operator() -> None:
    wide = dataclasses.replace(HALF, inputs=("Float",), weights=("Float",))
    with pytest.raises(PrecisionMismatch, match=r"a \(Half -> Float\)"):
        check("fp16", {"a": "Half"}, wide)


def test_an_engine_that_narrows_a_float_operator() -> None:
    narrow = dataclasses.replace(FLOAT, inputs=("Half",), weights=("Half",))
    with pytest.raises(PrecisionMismatch, match=r"b \(Float -> Half\)"):
        check("fp32", {"b": "Float"}, narrow)


def test_an_fp32_engine_has_no_half_kernel_at_all() -> None:
    stray = Kernel("cast", "kgen", "t", ("Float",), (), ("Half",), ())
    with pytest.raises(PrecisionMismatch, match=r"cast \(Half\)"):
        check("fp32", {"b": "Float"}, FLOAT, stray)


def test_tf32_is_not_fp32() -> None:
    with pytest.raises(PrecisionMismatch, match=r"search \(TF32\)"):
        check("fp32", {"b": "Float"}, FLOAT, tf32=True)
    tactic = dataclasses.replace(FLOAT, tactic="sm80_xmma_gemm_f32f32_tf32f32_f32")
    with pytest.raises(PrecisionMismatch, match="TF32"):
        check("fp32", {"b": "Float"}, tactic)


def test_the_kernel_that_multiplies_counts_not_the_one_that_prepares() -> None:
    prepare = Kernel("__myl_CastTran", "kgen", "t", ("UInt8",), (), ("Half",), ("a",))
    assert check("fp16", {"a": "Half"}, prepare, HALF).share == 1.0
    inside = Kernel("_gemm_mha_v2_1", "kgen", "t", ("Float", "Float"), (), ("Half",), ("a",))
    with pytest.raises(PrecisionMismatch, match=r"a \(Half -> Float\)"):
        check("fp16", {"a": "Half"}, prepare, inside)


def test_an_operator_without_a_kernel_must_be_a_constant() -> None:
    operators = {"a": "Half", "folded": "Half"}
    with pytest.raises(PrecisionMismatch, match=r"names 1 of 2 heavy operators.*folded"):
        check("fp16", operators, HALF)
    report = check_engine("fp16", operators, [HALF], tf32=False, label="graph", constant={"folded"})
    assert report.unseen == ("folded",)


@pytest.mark.parametrize("kernels", [(), (FLOAT,)])
def test_an_engine_that_shows_nothing_proves_nothing(kernels: tuple[Kernel, ...]) -> None:
    with pytest.raises(PrecisionMismatch, match="not proved"):
        check("fp16", {"a": "Half"}, *kernels)


def test_a_graph_without_heavy_operators_has_no_share() -> None:
    check_graph("fp16", {}, "graph")
    assert check("fp16", {}, FLOAT).share is None
