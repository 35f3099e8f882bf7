"""Names of other files inside a graph are seen wherever ONNX lets one stand."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, helper

from mmprod.bundle.external import check_external_data
from mmprod.errors import IntegrityError


def outside(location: str = "/etc/hostname") -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def model(*nodes: onnx.NodeProto, **about: object) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph(list(nodes), "g", [], []), **about)


def in_constant() -> onnx.ModelProto:
    return model(helper.make_node("Constant", [], ["y"], value=outside()))


def in_list_of_tensors() -> onnx.ModelProto:
    node = helper.make_node("Custom", [], ["y"])
    node.attribute.add(name="many", type=onnx.AttributeProto.TENSORS).tensors.append(outside())
    return model(node)


def in_branch() -> onnx.ModelProto:
    branch = helper.make_graph([], "b", [], [], [outside()])
    for _ in range(3):
        node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
        branch = helper.make_graph([node], "b", [], [])
    return helper.make_model(branch)


def in_sparse() -> onnx.ModelProto:
    made = model()
    made.graph.sparse_initializer.add().values.CopyFrom(outside())
    return made


def in_function() -> onnx.ModelProto:
    made = model()
    inner = helper.make_node("Constant", [], ["y"], value=outside())
    made.functions.add(name="f").node.append(inner)
    return made


def in_default_of_function() -> onnx.ModelProto:
    made = model()
    made.functions.add(name="f").attribute_proto.add(name="a").t.CopyFrom(outside())
    return made


def in_training() -> onnx.ModelProto:
    made = model()
    made.training_info.add().algorithm.initializer.append(outside())
    return made


HIDDEN = (
    in_constant, in_list_of_tensors, in_branch, in_sparse, in_function, in_default_of_function,
    in_training,
)  # fmt: skip


@pytest.mark.parametrize("make", HIDDEN)
def test_a_name_is_found_wherever_it_hides(make: object, tmp_path: Path) -> None:
    assert callable(make)
    (tmp_path / "g.onnx").write_bytes(make().SerializeToString())
    with pytest.raises(IntegrityError, match="/etc/hostname"):
        check_external_data(tmp_path, "g.onnx", {"w": 9})


def test_a_graph_given_in_two_parts_is_read_as_one(tmp_path: Path) -> None:
    """Protobuf merges a message that stands twice."""
    data = model().SerializeToString() + in_constant().SerializeToString()
    (tmp_path / "g.onnx").write_bytes(data)
    with pytest.raises(IntegrityError, match="/etc/hostname"):
        check_external_data(tmp_path, "g.onnx", {})


def test_two_locations_of_one_tensor_are_refused(tmp_path: Path) -> None:
    tensor = outside("w")
    tensor.external_data.add(key="location", value="/etc/hostname")
    made = model(helper.make_node("Constant", [], ["y"], value=tensor))
    (tmp_path / "g.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(IntegrityError, match="two values"):
        check_external_data(tmp_path, "g.onnx", {"w": 9})


def field(number: int, kind: int, content: bytes) -> bytes:
    """A field of protobuf with a tag of five bytes."""
    tag = number << 3 | kind
    varint = bytes(tag >> shift & 0x7F | 0x80 for shift in (0, 7, 14, 21)) + bytes([tag >> 28])
    return varint + bytes([len(content)]) + content


def test_a_tag_that_some_parsers_cut_to_32_bits_is_refused(tmp_path: Path) -> None:
    graph = in_constant().graph.SerializeToString()
    assert len(graph) < 128
    (tmp_path / "g.onnx").write_bytes(field(7, 2, graph))
    with pytest.raises(IntegrityError, match="/etc/hostname"):
        check_external_data(tmp_path, "g.onnx", {})
    (tmp_path / "g.onnx").write_bytes(field(7 + 2**29, 2, graph))
    with pytest.raises(IntegrityError, match="form that cannot be read"):
        check_external_data(tmp_path, "g.onnx", {})


def test_a_graph_that_breaks_off_after_a_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(in_constant().SerializeToString() + b"\x3a\x70")
    with pytest.raises(IntegrityError, match="form that cannot be read"):
        check_external_data(tmp_path, "g.onnx", {})


def test_other_ways_to_a_file_are_closed(tmp_path: Path) -> None:
    made = model(helper.make_node("EPContext", [], ["y"], domain="com.microsoft", embed_mode=0))
    (tmp_path / "g.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(IntegrityError, match="EPContext"):
        check_external_data(tmp_path, "g.onnx", {})
    (tmp_path / "g.ort").write_bytes(b"\x00\x00\x00\x00ORTM")
    with pytest.raises(IntegrityError, match=r"end in \.onnx"):
        check_external_data(tmp_path, "g.ort", {})


def tensors(message: Message) -> Iterator[TensorProto]:
    """All tensors anywhere inside, as the onnx package's own parser sees them."""
    for about, value in message.ListFields():
        if about.message_type is None:
            continue
        for part in value if about.is_repeated else [value]:
            if isinstance(part, TensorProto):
                yield part
            yield from tensors(part)


def harmed(data: bytes, rng: random.Random) -> bytes:
    """One to three changes: a bit, bytes more or fewer, another graph's head, a longer tag."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place, kind = rng.randrange(len(made)), rng.randrange(5)
        if kind == 0:
            made[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            made[place:place] = rng.randbytes(rng.randint(1, 3))
        elif kind == 2:
            del made[place : place + rng.randint(1, 2)]
        elif kind == 3:
            made += data[: rng.randrange(60)]
        else:
            longer = (made[place] | 0x80, 0x80, 0x80, 0x80, rng.choice((0, 0x10, 0x40)))
            made[place : place + 1] = bytes(longer)
    return bytes(made)


def test_no_name_that_a_parser_sees_is_missed(tmp_path: Path) -> None:
    rng, parsed, path = random.Random(0), 0, tmp_path / "g.onnx"
    graphs = [make().SerializeToString() for make in HIDDEN]
    for _ in range(2000):
        data = harmed(rng.choice(graphs), rng)
        try:
            read = onnx.load_model_from_string(data)
        except DecodeError:
            continue
        parsed += 1
        names = [e.value for t in tensors(read) for e in t.external_data if e.key == "location"]
        path.write_bytes(data)
        if set(names) - {"w"}:
            with pytest.raises(IntegrityError):
                check_external_data(tmp_path, "g.onnx", {"w": 9})
    assert parsed > 100


@pytest.mark.parametrize("data", [b"", b"not a graph", b"\x3a\xff\xff\xff\xff\x0f", b"\x3a" * 50])
def test_what_no_runtime_can_read_is_left_to_the_runtime(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "g.onnx").write_bytes(data)
    check_external_data(tmp_path, "g.onnx", {})
    if data:
        with pytest.raises(Exception, match=r"pars|decod"):
            onnx.load_model_from_string(data)


def test_own_weights_are_fine(tmp_path: Path) -> None:
    made = model(helper.make_node("Constant", [], ["y"], value=outside("w.data")))
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "g.onnx").write_bytes(made.SerializeToString())
    check_external_data(tmp_path, "onnx/g.onnx", {"onnx/w.data": 4})
    with pytest.raises(IntegrityError, match="does not list"):
        check_external_data(tmp_path, "onnx/g.onnx", {"w.data": 4})
