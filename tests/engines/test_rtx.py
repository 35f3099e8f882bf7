"""Real builds of small graphs: what comes out, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmprod.engines import rtx
from mmprod.engines.job import BuildJob, BuildResult, Port
from mmprod.engines.precision_check import PrecisionReport
from mmprod.errors import ConfigError, IntegrityError, PrecisionMismatch
from mmprod.graphs.spec import GraphSpec
from tests.engines import small_graphs

Maker = Callable[[Path], GraphSpec]


def half(make: Callable[[Path, str], GraphSpec]) -> Maker:
    return lambda path: make(path, "fp16")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "graph.onnx"


@pytest.mark.parametrize(
    ("make", "precision", "target", "operators"),
    [
        (small_graphs.matmul, "fp32", "sm86", 2),
        (half(small_graphs.matmul), "fp16", "sm89", 2),
        (small_graphs.conv, "fp32", "sm89", 1),
        (half(small_graphs.conv), "fp16", "sm120", 1),
        (small_graphs.loop, "fp32", "sm86", 1),
        (half(small_graphs.loop), "fp16", "sm120", 1),
        (lambda path: small_graphs.matmul(path, "bf16"), "bf16", "sm86", 2),
        (lambda path: small_graphs.quantized(path, "int8"), "int8", "sm89", 1),
        (lambda path: small_graphs.quantized(path, "fp8"), "fp8", "sm120", 1),
    ],
)
def test_an_engine_has_the_precision_that_was_asked_for(
    path: Path, make: Maker, precision: str, target: str, operators: int
) -> None:
    job = small_graphs.job(make(path), path, precision, target)
    result = rtx.build(job)
    plan = Path(job.plan).read_bytes()
    assert len(plan) > 10_000
    assert result.precision["operators"] == operators
    assert result.precision["share"] == 1.0
    assert result.precision["unseen"] == ()
    assert result.layers["kernels"] == len(result.layers["list"]) > 0
    assert {"scratch", "activation", "weights"} <= set(result.memory)
    assert result.memory["weights"] > 0
    named = [node for kernel in result.layers["list"] for node in kernel["nodes"]]
    assert any(node in named for node in ("first", "filter", "body_product", "product"))


def test_only_a_product_of_constants_may_go_without_a_kernel(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_graphs.job(small_graphs.folded(path), path, "fp32", "sm86")
    check, told = rtx.check_engine, []

    def without_kernel(*arguments: Any, constant: set[str], **options: Any) -> PrecisionReport:
        asked, operators, kernels = arguments
        told.append(constant)
        bare = [dataclasses.replace(k, nodes=tuple({*k.nodes} - {lost})) for k in kernels]
        return check(asked, operators, bare, constant=constant, **options)

    monkeypatch.setattr(rtx, "check_engine", without_kernel)
    lost = "constant_product"
    assert rtx.build(job).precision["unseen"] == (lost,)
    lost = "product"
    with pytest.raises(PrecisionMismatch, match="names 1 of 2 heavy operators"):
        rtx.build(job)
    assert told == [{"constant_product"}] * 2


def test_weights_of_a_half_engine_are_half_as_large(path: Path) -> None:
    sizes = {}
    for precision in ("fp32", "fp16"):
        graph = small_graphs.matmul(path, precision)
        sizes[precision] = rtx.build(small_graphs.job(graph, path, precision, "sm86")).memory
    # (16 * 64 + 64 * 8) numbers of 4 or 2 bytes, and a few constants of the kernels
    assert 6144 <= sizes["fp32"]["weights"] < 6144 + 512
    assert 3072 <= sizes["fp16"]["weights"] < 3072 + 512


def test_an_operator_that_tensorrt_lacks_is_named_with_its_node(path: Path) -> None:
    job = small_graphs.job(small_graphs.multinomial(path), path, "fp32", "sm86")
    with pytest.raises(ConfigError, match=r"node 'draw_tokens' \(Multinomial\)"):
        rtx.build(job)
    assert not Path(job.plan).exists()


@pytest.mark.parametrize(
    ("make", "precision", "target", "words"),
    [
        (small_graphs.matmul, "fp32", "sm75", "FP32 GEMM is not supported"),
        (lambda path: small_graphs.matmul(path, "bf16"), "bf16", "sm75", "sm75.*b16"),
        (lambda path: small_graphs.quantized(path, "fp8"), "fp8", "sm86", "sm86.*fp8"),
    ],
)
def test_what_a_target_cannot_do_is_told_in_the_builders_words(
    path: Path, make: Maker, precision: str, target: str, words: str
) -> None:
    job = small_graphs.job(make(path), path, precision, target)
    with pytest.raises(ConfigError, match=words) as caught:
        rtx.build(job)
    assert "/_src" not in caught.value.message
    assert not Path(job.plan).exists()


@pytest.mark.parametrize(("graph", "asked"), [("fp32", "fp16"), ("fp16", "fp32"), ("bf16", "fp16")])
def test_a_graph_in_another_precision_is_refused(path: Path, graph: str, asked: str) -> None:
    job = small_graphs.job(small_graphs.matmul(path, graph), path, asked, "sm86")
    with pytest.raises(PrecisionMismatch, match=f"{asked} was asked, but 2 of 2 .*first"):
        rtx.build(job)
    assert not Path(job.plan).exists()


def test_a_failure_keeps_no_native_object_alive(path: Path) -> None:
    job = small_graphs.job(small_graphs.multinomial(path), path, "fp32", "sm86")
    with pytest.raises(ConfigError) as caught:
        rtx.build(job)
    frames = [frame for frame, _ in traceback.walk_tb(caught.tb)]
    inner = [frame for frame in frames if frame.f_code is rtx._build.__code__]
    assert len(inner) == 1
    assert inner[0].f_locals == {}


def test_a_graph_that_is_not_the_specified_one_is_refused(path: Path) -> None:
    job = small_graphs.job(small_graphs.matmul(path), path, "fp32", "sm86")
    other = (Port("y", "float32", (-1, 9)),)
    with pytest.raises(IntegrityError, match="its outputs are"):
        rtx.build(dataclasses.replace(job, outputs=other))


@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_changed_since_it_was_asked_for_is_refused(path: Path, gone: bool) -> None:
    job = small_graphs.job(small_graphs.matmul(path), path, "fp32", "sm86")
    small_graphs.matmul(path, "fp16")  # another one that could be built
    if gone:
        path.unlink()
    with pytest.raises(IntegrityError, match="changed before it was read"):
        rtx.build(job)
    assert not Path(job.plan).exists()


def test_a_file_that_is_no_onnx_is_refused(path: Path) -> None:
    graph = small_graphs.matmul(path)
    path.write_bytes(b"no protobuf at all")
    job = small_graphs.job(graph, path, "fp32", "sm86")
    with pytest.raises(ConfigError, match=r"cannot read graph\.onnx"):
        rtx.build(job)


def test_jobs_and_results_survive_the_way_through_json(path: Path) -> None:
    job = small_graphs.job(small_graphs.conv(path), path, "fp32", "sm86")
    assert BuildJob.parse(json.loads(json.dumps(job.as_dict()))) == job
    assert job.profile == {
        "pixels": {"min": [1, 16, 16, 3], "typical": [4, 16, 16, 3], "max": [16, 16, 16, 3]}
    }
    result = rtx.build(job)
    again = BuildResult.parse(json.loads(json.dumps(result.as_dict())))
    assert json.dumps(again.as_dict()) == json.dumps(result.as_dict())
