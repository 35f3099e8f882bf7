"""The two runners of the CPU: same call, same answers, errors in our own words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError
from mmprod.graphs.spec import Dim, GraphSpec
from mmprod.graphs.spec import Tensor as Port
from mmprod.runners import ort
from mmprod.runners.ort import OrtRunner
from mmprod.runners.torch import TorchRunner

BATCH = Dim("batch", 1, 2, 4)
TABLE = np.arange(30, dtype=np.float32).reshape(10, 3)
SPEC = GraphSpec(
    "lookup",
    (Port("tokens", "int32", (BATCH, 2), "tokens", below=10),),
    (Port("rows", "float32", (BATCH, 2, 3), "logits"),),
    "",
)
TOKENS = np.array([[1, 9], [0, 3], [4, 4]], np.int32)


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.from_numpy(TABLE.copy()))
        self.dropout = nn.Dropout(0.5)

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (self.dropout(self.table[tokens.long()]),)


def save(path: Path, output: str = "rows", kind: int = TensorProto.FLOAT, rows: int = 10) -> Path:
    node = helper.make_node("Gather", ["table", "tokens"], [output])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("tokens", TensorProto.INT32, ["batch", 2])],
        [helper.make_tensor_value_info(output, kind, ["batch", 2, 3])],
        [numpy_helper.from_array(TABLE[:rows], "table")],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "g.onnx")


def test_both_give_the_same(path: Path) -> None:
    for runner in (OrtRunner(SPEC, path, threads=1), TorchRunner(SPEC, Lookup())):
        found = runner({"tokens": TOKENS})
        assert list(found) == ["rows"]
        np.testing.assert_array_equal(found["rows"], TABLE[TOKENS])


def test_the_backend_is_read_back(path: Path) -> None:
    assert "CPUExecutionProvider" in OrtRunner(SPEC, path).backend
    assert TorchRunner(SPEC, Lookup()).backend == f"torch {torch.__version__} cpu"


def test_inputs_are_checked_first(path: Path) -> None:
    for runner in (OrtRunner(SPEC, path, threads=1), TorchRunner(SPEC, Lookup())):
        with pytest.raises(ConfigError, match=r"outside 0\.\.9"):
            runner({"tokens": TOKENS - 5})
        with pytest.raises(ConfigError, match="takes the inputs"):
            runner({"codes": TOKENS})


def test_read_only_and_strided_inputs_are_taken(path: Path) -> None:
    wide = np.repeat(TOKENS, 2, axis=1)[:, ::2]
    wide.flags.writeable = False
    for runner in (OrtRunner(SPEC, path, threads=1), TorchRunner(SPEC, Lookup())):
        np.testing.assert_array_equal(runner({"tokens": wide})["rows"], TABLE[TOKENS])


def test_closing_twice_is_allowed_and_use_afterwards_is_not(path: Path) -> None:
    for runner in (OrtRunner(SPEC, path, threads=1), TorchRunner(SPEC, Lookup())):
        runner.close()
        runner.close()
        with pytest.raises(ValueError, match="closed"):
            runner({"tokens": TOKENS})


def test_outputs_of_torch_do_not_share_memory_with_the_model() -> None:
    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.zeros(1, 2, 3))

        def forward(self, tokens: Tensor) -> tuple[Tensor]:
            return (self.rows,)

    module = Weights()
    found = TorchRunner(SPEC, module)({"tokens": TOKENS[:1]})
    found["rows"][:] = 7
    assert float(module.rows.detach().abs().max()) == 0


def test_missing_and_broken_files(tmp_path: Path, path: Path) -> None:
    with pytest.raises(IntegrityError, match="missing"):
        OrtRunner(SPEC, tmp_path / "no.onnx")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(IntegrityError, match="cannot be loaded"):
        OrtRunner(SPEC, path)


@pytest.mark.parametrize("change", [{"output": "lines"}, {"kind": TensorProto.INT64}])
def test_another_graph_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    other = tmp_path / "other.onnx"
    if "kind" in change:
        spec = GraphSpec(
            "g", SPEC.inputs, (Port("rows", "int32", (BATCH, 2, 3), "codes", below=1),), ""
        )
        with pytest.raises(IntegrityError, match="not the graph g"):
            OrtRunner(spec, save(other))
    else:
        with pytest.raises(IntegrityError, match="lines"):
            OrtRunner(SPEC, save(other, output="lines"))


def test_errors_while_running_are_ours(tmp_path: Path) -> None:
    runner = OrtRunner(SPEC, save(tmp_path / "short.onnx", rows=5), threads=1)
    with pytest.raises(IntegrityError, match="failed in ONNX Runtime"):
        runner({"tokens": TOKENS})


def test_a_provider_that_is_not_there_or_not_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EnvironmentMissing, match="no CUDAExecutionProvider"):
        OrtRunner(SPEC, path, providers=("CUDAExecutionProvider",))

    class Fallen:
        """What ONNX Runtime does where a listed provider cannot be loaded."""

        def __init__(self, *args: object, **kwargs: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort.ort, "get_available_providers", lambda: listed)
    monkeypatch.setattr(ort.ort, "InferenceSession", Fallen)
    with pytest.raises(EnvironmentMissing, match="fell back"):
        OrtRunner(SPEC, path, providers=("CUDAExecutionProvider",))
