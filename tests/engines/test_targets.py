"""What can be asked for, and that the table tells the truth about TensorRT for RTX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmprod.engines import rtx
from mmprod.engines.targets import FIRST, TARGETS, check_request, find_target
from mmprod.errors import ConfigError
from mmprod.graphs.spec import GraphSpec
from tests.engines import small_graphs

RTX = [target.name for target in TARGETS.values() if target.rtx]


@pytest.mark.parametrize("target", ["sm86", "sm89", "sm120"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_engines_of_the_demo_can_be_asked_for(precision: str, target: str) -> None:
    assert check_request(precision, target).name == target


@pytest.mark.parametrize(
    ("precision", "target", "message", "hint"),
    [
        ("bf16", "sm75", "the hardware has bf16 from sm80 on", "sm80, sm86"),
        ("fp8", "sm86", "the hardware has fp8 from sm89 on", "sm89, sm120"),
        ("fp32", "sm75", "no fp32 matrix product", "fp16"),
        ("fp16", "sm90", "no target of TensorRT for RTX", "--flavour tensorrt --target sm90"),
        ("fp16", "sm9o", "unknown target 'sm9o'", "did you mean sm90 or sm89?"),
        ("fp16", "8.6", "unknown target '8.6'", "did you mean sm86?"),
        ("fp16", "hopper", "unknown target 'hopper'", "known targets: sm75"),
        ("fp61", "sm86", "unknown precision 'fp61'", "did you mean fp16"),
        ("half", "sm86", "unknown precision 'half'", "known precisions: fp32"),
    ],
)
def test_a_request_that_cannot_be_met_names_the_cause(
    precision: str, target: str, message: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_request(precision, target)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_tensorrt_on_the_device_has_other_limits() -> None:
    assert check_request("fp8", "sm90", "tensorrt").devices == "H100, H200"
    assert check_request("fp32", "sm75", "tensorrt").capability == 75
    with pytest.raises(ConfigError, match="fp8 from sm89"):
        check_request("fp8", "sm80", "tensorrt")


def test_every_target_can_be_found() -> None:
    assert [find_target(name).name for name in TARGETS] == list(TARGETS)


def _builds(graph: GraphSpec, path: Path, precision: str, target: str) -> bool:
    try:
        rtx.build(small_graphs.job(graph, path, precision, target))
    except ConfigError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("precision", FIRST)
def test_the_table_agrees_with_real_builds(tmp_path: Path, precision: str) -> None:
    path = tmp_path / "graph.onnx"
    quantized = precision in small_graphs.QUANTIZED
    make: Callable[[Path, str], GraphSpec] = (
        small_graphs.quantized if quantized else small_graphs.matmul
    )
    graph = make(path, precision)
    built = {target for target in RTX if _builds(graph, path, precision, target)}
    promised = set()
    for target in RTX:
        try:
            promised.add(check_request(precision, target).name)
        except ConfigError:
            continue
    assert promised == built
