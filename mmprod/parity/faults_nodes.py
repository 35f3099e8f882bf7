"""Numeric and structural faults in the nodes and the interface of a graph.

As in faults_weights.py: a model is changed in memory, ConfigError says that there is no target.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmprod.bundle import Bundle
from mmprod.errors import ConfigError
from mmprod.parity.cases import stored_cases
from mmprod.parity.sabotage import Change
from mmprod.parity.surgery import (
    DENSE,
    add_weight,
    graphs_of,
    import_onnx,
    insert_after,
    nodes_of,
    pick,
    put_values,
    values_of,
    weights_of,
)

CEILING = 0.05
"""What a clipped softmax never exceeds."""
TOO_LARGE = 2.0**15
"""Factor on a weight that drives its product out of half precision's range."""


def _set_attribute(node: Any, name: str, value: Any) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, import_onnx().helper.make_attribute(name, value)])


def _made(operator: str, *inputs: str, **attributes: Any) -> Any:
    """A node for `insert_after`: its first input comes from there."""
    return import_onnx().helper.make_node(operator, ["", *inputs], [""], **attributes)


def _drop_residual(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    """A sum of two computed values forgets its first one."""
    constants = {w.name for w in model.graph.initializer}

    def sums(node: Any) -> bool:
        return constants.isdisjoint(node.input) and "rotary" not in node.name

    _, node = pick(model, ("Add",), sums)
    node.op_type = "Identity"
    node.input[:] = [node.input[1]]
    return node.name, "the residual is not added"


def _clip_softmax(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    owner, node = pick(model, ("Softmax",))
    low = add_weight(model, f"{node.name}_low", np.float32(0))
    high = add_weight(model, f"{node.name}_high", np.float32(CEILING))
    insert_after(owner, node, _made("Clip", low, high))
    return node.name, f"softmax clipped at {CEILING:g}"


def _softmax_axis(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    _, node = pick(model, ("Softmax",))
    _set_attribute(node, "axis", -2)
    return node.name, "softmax over the wrong axis"


def _wrong_activation(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    _, node = pick(model, ("Sigmoid", "Gelu"))
    del node.attribute[:]
    before, node.op_type = node.op_type, "Tanh" if node.op_type == "Sigmoid" else "Relu"
    return node.name, f"{node.op_type} instead of {before}"


def _wrong_padding(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    """The padding of a convolution all at the end, none at the start."""

    def padded(node: Any) -> bool:
        return any(a.name == "pads" and any(a.ints) for a in node.attribute)

    _, node = pick(model, ("Conv",), padded)
    pads = list(next(a.ints for a in node.attribute if a.name == "pads"))
    half = len(pads) // 2
    moved = [0] * half + [a + b for a, b in zip(pads[:half], pads[half:], strict=True)]
    _set_attribute(node, "pads", moved)
    return node.name, f"padding {moved} instead of {pads}"


def _wrong_resize(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    _, node = pick(model, ("Resize",))
    _set_attribute(node, "mode", "linear")
    _set_attribute(node, "coordinate_transformation_mode", "half_pixel")
    return node.name, "linear instead of nearest"


def _swap_operands(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    _, node = pick(model, ("Sub", "Div"))
    node.input[:] = [node.input[1], node.input[0]]
    return node.name, f"operands of {node.op_type} exchanged"


def _bgr(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    """The colours of the picture in the order blue, green, red."""
    order = add_weight(model, "bgr_order", np.array([2, 1, 0], np.int64))
    names = {t.name for t in bundle.specs[graph].outputs if t.role == "pixels"}
    for node in model.graph.node:
        if names & set(node.output):
            insert_after(model.graph, node, _made("Gather", order, axis=3))
            return node.name, "colours written as BGR"
    names = {t.name for t in bundle.specs[graph].inputs if t.role == "pixels"}
    for node in model.graph.node:
        if node.op_type == "Cast" and names & set(node.input):
            insert_after(model.graph, node, _made("Gather", order, axis=3))
            return node.name, "colours read as BGR"
    raise ConfigError(f"{graph} has no pictures")


def _permute_batch(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    """The samples of the first output in the reverse order."""
    name = model.graph.output[0].name
    spec = bundle.specs[graph]
    stored = (bundle.path(a) for a in bundle.artefacts(role="reference", graph=graph))
    outputs = [(case.outputs or {})[name] for path in stored for case in stored_cases(path, spec)]
    if all(np.array_equal(values, values[::-1]) for values in outputs):
        raise ConfigError(f"the samples of every stored case of {graph} have the same {name}")
    node = next(n for n in model.graph.node if name in n.output)
    bounds = {"start": -1, "end": -(2**31), "axis": 0, "step": -1}
    inputs = [add_weight(model, f"batch_{k}", np.array([v], np.int64)) for k, v in bounds.items()]
    insert_after(model.graph, node, _made("Slice", *inputs))
    return node.name, f"{name}: samples in reverse order"


def _missing_cast(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    """A sum that must be float32 goes through a type with 8 bits of mantissa: the cast that should
    come before an operator comes after it."""
    onnx = import_onnx()
    constants = {w.name for w in model.graph.initializer}
    typed = onnx.shape_inference.infer_shapes(model).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in typed}

    def sums(node: Any) -> bool:
        single = types.get(node.output[0], onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT
        return single and constants.isdisjoint(node.input) and "rotary" not in node.name

    owner, node = pick(model, ("Add",), sums)
    insert_after(owner, node, _made("Cast", to=onnx.TensorProto.FLOAT))
    insert_after(owner, node, _made("Cast", to=onnx.TensorProto.BFLOAT16))
    return node.name, "the sum is kept in 16 bits"


def _tf32(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    """Matrix products and convolutions on operands of 10 bits of mantissa, as TF32 does."""
    kind = import_onnx().TensorProto
    weights = {weight.name: weight for weight in weights_of(model)}
    found = [(g, n) for g, n in nodes_of(model) if n.op_type in DENSE]
    if not found or any(w.data_type == kind.FLOAT16 for w in weights.values()):
        raise ConfigError(f"{graph} has no matrix products in float32")
    helper = import_onnx().helper
    rounded: set[str] = set()
    for owner, node in found:
        for place, name in enumerate(list(node.input)[:2]):
            if name in weights:
                if name not in rounded:
                    put_values(weights[name], _ten_bits(values_of(weights[name])))
                rounded.add(name)
                continue
            short, back = f"{node.name}_{place}_short", f"{node.name}_{place}_back"
            index = list(owner.node).index(node)
            owner.node.insert(index, helper.make_node("Cast", [short], [back], back, to=kind.FLOAT))
            owner.node.insert(
                index, helper.make_node("Cast", [name], [short], short, to=kind.FLOAT16)
            )
            node.input[place] = back
    return found[0][1].name, f"{len(found)} products on operands of 10 bits"


def _ten_bits(values: Any) -> Any:
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)


def _loop_count(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    for weight in model.graph.initializer:
        if weight.name == "loop/steps":
            return put_values(weight, values_of(weight) - 1), "one step too few"
    raise ConfigError(f"{graph} has no loop")


def _overflow(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    """A half weight so large that its product overflows, and the factor taken back behind it."""
    half = import_onnx().TensorProto.FLOAT16
    weights = {w.name: w for w in weights_of(model) if w.data_type == half}

    def reads_half(node: Any) -> bool:
        return len(node.input) > 1 and node.input[1] in weights

    owner, node = pick(model, ("MatMul", "Conv"), reads_half)
    weight = weights[node.input[1]]
    limit = 60000 / float(np.abs(values_of(weight)).max())
    factor = float(2.0 ** np.floor(np.log2(min(limit, TOO_LARGE))))
    name = add_weight(
        model, f"{node.name}_large", (values_of(weight).astype(np.float32) * factor).astype("f2")
    )
    node.input[1] = name
    up = add_weight(model, f"{name}_up", np.float16(TOO_LARGE))
    down = add_weight(model, f"{name}_down", np.float16(1 / TOO_LARGE))
    back = add_weight(model, f"{name}_back", np.float16(1 / factor))
    for other in (back, down, up):  # each goes before the one put there last
        insert_after(owner, node, _made("Mul", other))
    return (
        node.name,
        f"weight multiplied by {factor:g}, the product by {TOO_LARGE:g}, and both undone",
    )


def _dropped_cast(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    index = import_onnx().TensorProto.INT64  # ids may have either type of integer
    _, node = pick(model, ("Cast",), lambda n: all(a.i != index for a in n.attribute))
    source, result = node.input[0], node.output[0]
    for owner in graphs_of(model.graph):
        for other in owner.node:
            other.input[:] = [source if name == result else name for name in other.input]
    node.op_type = "Identity"
    del node.attribute[:]
    return node.name, "cast left out"


def _swap_names(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    """Two inputs or outputs exchange their names; a single output gets another name."""
    for values in (model.graph.input, model.graph.output):
        if len(values) > 1:
            names = [value.name for value in values]
            values[0].name, values[1].name = names[1], names[0]
            _rename(model, {names[0]: names[1], names[1]: names[0]})
            return names[0], f"exchanged its name with {names[1]}"
    name = model.graph.output[0].name
    model.graph.output[0].name = f"{name}_other"
    _rename(model, {name: f"{name}_other"})
    return name, "output called otherwise"


def _rename(model: Any, names: dict[str, str]) -> None:
    for _, node in nodes_of(model):
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _wrong_opset(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    model.opset_import[0].version = 9999
    return "opset", "a version that does not exist"


def _output_type(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    output, kinds = model.graph.output[0], import_onnx().TensorProto
    node = next(n for n in model.graph.node if output.name in n.output)
    insert_after(model.graph, node, _made("Cast", to=kinds.DOUBLE))
    output.type.tensor_type.elem_type = kinds.DOUBLE
    return node.name, f"{output.name} became float64"


def _fixed_batch(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    value = model.graph.input[0]
    value.type.tensor_type.shape.dim[0].dim_value = 1
    return value.name, "batch fixed at 1"


NODE_FAULTS: dict[str, Change] = {
    "drop_residual": _drop_residual,
    "clip_softmax": _clip_softmax,
    "softmax_axis": _softmax_axis,
    "wrong_activation": _wrong_activation,
    "wrong_padding": _wrong_padding,
    "wrong_resize": _wrong_resize,
    "swap_operands": _swap_operands,
    "bgr": _bgr,
    "permute_batch": _permute_batch,
    "missing_cast": _missing_cast,
    "tf32": _tf32,
    "loop_count": _loop_count,
    "overflow": _overflow,
}

FORM_FAULTS: dict[str, Change] = {
    "dropped_cast": _dropped_cast,
    "swap_names": _swap_names,
    "wrong_opset": _wrong_opset,
    "output_type": _output_type,
    "fixed_batch": _fixed_batch,
}
