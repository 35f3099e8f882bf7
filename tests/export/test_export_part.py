"""One module to one graph: names, dynamic sizes, scopes, and what is refused."""

from __future__ import annotations

import os
import pickle
import signal

import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from mmprod.errors import ConfigError, EnvironmentMissing
from mmprod.export.computed_types import precision_of
from mmprod.export.graph_file import check_operators, finish_graph
from mmprod.export.onnx_export import SCOPE, Part, export_part
from mmprod.export.precision import HEAVY, cast_model, scope_of
from mmprod.export.workers import ExportWorker, export_parts, process_count
from mmprod.graphs.spec import Dim, GraphSpec
from mmprod.graphs.spec import Tensor as Port
from tests.export.small_onnx import graph, node

BATCH = Dim("batch", 1, 2, 8)


class Search(nn.Module):
    """A codebook whose search is a plain method, so that no forward marks it."""

    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(10, 4))

    def nearest(self, x: Tensor) -> Tensor:
        return (x @ self.codes.T).argmax(-1).to(torch.int32)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)
        self.quantizer = Search()

    def forward(self, codes: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        x = self.up(codes) + step.to(torch.float32)
        return self.quantizer.nearest(x), codes


class Tabled(nn.Module):
    """A head that reads a table computed from weights: a constant that is no weight itself."""

    features: Tensor

    def __init__(self, ids: int) -> None:
        super().__init__()
        self.embed, self.map = nn.Embedding(ids, 4), nn.Linear(2, 4, bias=False)
        self.register_buffer("features", torch.randn(ids, 2))
        self.up = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        table = self.embed.weight + self.map(self.features)
        return (torch.nn.functional.linear(self.up(x), table[:9]),)


class Largest(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.topk(x, 2).values,)


class Refusing(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        raise ConfigError("this model cannot be exported", hint="take another")


class Dying(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        os.kill(os.getpid(), signal.SIGKILL)
        return (x,)


def one_input(name: str, module: nn.Module, batch: int = 2) -> Part:
    return Part(name, module, ("x",), ("y",), (torch.rand(batch, 4),), ("batch",))


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    example = (torch.rand(2, 4), torch.zeros(1, dtype=torch.int64))
    names = (("codes", "step"), ("found", "codes_out"))
    return export_part(Part("small", Small(), *names, example, ("batch", "")))


def test_names_and_dynamic_sizes(model: onnx.ModelProto) -> None:
    def ports(values: object) -> list[tuple[str, list[str | int]]]:
        return [
            (v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
            for v in values  # type: ignore[attr-defined]
        ]

    assert ports(model.graph.input) == [("codes", ["batch", 4]), ("step", [1])]
    assert ports(model.graph.output) == [("found", ["batch"]), ("codes_out", ["batch", 4])]
    assert model.opset_import[0].version == 20
    onnx.checker.check_model(model, full_check=True)


def test_a_node_belongs_to_the_module_whose_weights_it_reads(model: onnx.ModelProto) -> None:
    scopes = {n.name: {p.key: p.value for p in n.metadata_props} for n in model.graph.node}
    products = [name for name in scopes if "MatMul" in name or "Gemm" in name]
    assert sorted(scopes[name][SCOPE] for name in products) == ["quantizer", "up"]
    assert all(set(notes) == {SCOPE} for notes in scopes.values())
    assert {"up.bias", "quantizer.codes"} <= {t.name for t in model.graph.initializer}


@pytest.mark.parametrize("ids", [10, 5000])
def test_what_reads_a_computed_table_belongs_to_its_largest_weight(ids: int) -> None:
    """Whether the exporter folds the table (small) or leaves its sum to be computed (large)."""
    model = export_part(one_input("tabled", Tabled(ids)))
    products = [node for node in model.graph.node if node.op_type in HEAVY]
    assert [scope_of(node) for node in products].count("embed") == 1
    half = cast_model(model, "fp16", ["embed", "map"])
    assert precision_of(half)["fp16"] == 1  # `up` alone
    names = [tensor.name for tensor in model.graph.initializer]
    assert ("embed.weight" in names) == (ids > 10)  # a sum does not go by the name of a part of it


def test_an_example_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        export_part(one_input("one", nn.Linear(4, 4), batch=1))


def test_an_operator_that_backends_disagree_on_is_refused() -> None:
    exported = export_part(one_input("largest", Largest()))
    spec = GraphSpec(
        "largest",
        (Port("x", "float32", (BATCH, 4), "noise"),),
        (Port("y", "float32", (BATCH, 2), "logits"),),
        "",
    )
    with pytest.raises(ConfigError, match="TopK"):
        finish_graph(exported, spec, "fp32")


def test_uint8_may_only_be_cast() -> None:
    pixels = {"x": (TensorProto.UINT8, ["batch", 8])}
    floats = [node("Cast", "x", "a", to=TensorProto.FLOAT), node("Transpose", "a", "y")]
    floats.append(node("Shape", "x", "size"))
    spec = GraphSpec("small", (), (), "")
    check_operators(graph(floats, {}, pixels), spec)
    bytes_first = [node("Transpose", "x", "a"), node("Cast", "a", "y", to=TensorProto.FLOAT)]
    with pytest.raises(ConfigError, match="/a computes with uint8"):
        check_operators(graph(bytes_first, {}, pixels), spec)


def test_a_graph_that_is_not_its_specification_is_a_bug(model: onnx.ModelProto) -> None:
    spec = GraphSpec("small", (), (), "")
    with pytest.raises(RuntimeError, match="specification"):
        finish_graph(model, spec, "fp32")


def test_a_worker_gives_the_same_bytes_and_hands_errors_over() -> None:
    parts = [one_input("good", nn.Linear(4, 4)), one_input("bad", Refusing())]
    done: list[str] = []
    with pytest.raises(ConfigError, match="cannot be exported") as caught:
        export_parts(parts, 1, lambda name, seconds: done.append(name))
    assert done == ["good"]
    with ExportWorker(parts, pickle.dumps(parts)) as worker:
        assert worker.export(0).SerializeToString() == export_part(parts[0]).SerializeToString()
        with pytest.raises(ConfigError, match="cannot be exported") as caught:
            worker.export(1)
    assert caught.value.hint == "take another"
    assert "another process" in caught.value.__notes__[0]


def test_a_worker_that_dies_is_reported() -> None:
    parts = [one_input("deadly", Dying())]
    with (
        pytest.raises(EnvironmentMissing, match="deadly ended with SIGKILL") as caught,
        ExportWorker(parts, pickle.dumps(parts)) as worker,
    ):
        worker.export(0)
    assert "memory" in caught.value.hint


def test_large_models_are_not_copied_to_workers() -> None:
    assert process_count(10**9) == 1
    assert 1 <= process_count(10**6) <= 4
