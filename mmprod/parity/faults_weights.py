"""Numeric faults in the weights and constants of a graph: what a wrong export step would leave.

Each function changes a model in memory and says which weight it changed and how. One without a
target in the graph raises ConfigError: the fault does not apply there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mmprod.bundle import Bundle
from mmprod.errors import ConfigError
from mmprod.graphs.runner import Array
from mmprod.parity.sabotage import Change, largest_dense
from mmprod.parity.surgery import (
    DENSE,
    add_weight,
    import_onnx,
    nodes_of,
    pick,
    put_values,
    reached,
    values_of,
    weights_of,
)

LEVELS = 7
"""Steps to each side that are left by rounding weights to four bits."""


def _dense(model: Any, accept: Callable[[Array], bool] = lambda values: True) -> list[Any]:
    """Weights of matrix products and convolutions, in the order of the graph's weights."""
    names = reached(model, DENSE)
    found = [w for w in weights_of(model) if w.name in names and len(w.dims) >= 2]
    found = [weight for weight in found if accept(values_of(weight))]
    if not found:
        raise ConfigError(f"{model.graph.name} has no such weight of a matrix product")
    return found


def _middle(model: Any, change: Callable[[Array], Array], text: str) -> tuple[str, str]:
    """Change the weight in the middle of the graph."""
    found = _dense(model)
    weight = found[len(found) // 2]
    values = values_of(weight)
    return put_values(weight, change(values).astype(values.dtype)), text


def _put_inf(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    weight, values = largest_dense(graph, model)
    values.flat[-1] = np.inf
    return put_values(weight, values), "last value set to infinity"


def _transpose(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    """The transposed values in the old shape: what a forgotten transposition gives."""

    def turned(values: Array) -> Array:
        return np.ascontiguousarray(values.swapaxes(0, 1)).reshape(values.shape)

    return _middle(model, turned, "stored transposed")


def _scale(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    """Not the whole weight, nor whole channels: a norm behind them would take that away again."""

    def scaled(values: Array) -> Array:
        even = np.arange(values.size).reshape(values.shape) % 2 == 0
        return np.where(even, values * 1.25, values)

    return _middle(model, scaled, "every other value multiplied by 1.25")


def _flip_sign(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    return _middle(model, lambda values: -values, "sign flipped")


def _zero(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    return _middle(model, np.zeros_like, "all set to zero")


def _round(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    def rounded(values: Array) -> Array:
        step = np.abs(values).max() / LEVELS
        return np.asarray(np.rint(values / step) * step)

    return _middle(model, rounded, "rounded to four bits without being asked")


def _swap_layers(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    """Exchange two weights of the same shape."""
    found = _dense(model)
    pairs = [(a, b) for n, a in enumerate(found) for b in found[n + 1 :] if a.dims == b.dims]
    if not pairs:
        raise ConfigError(f"{graph} has no two weights of one shape")
    one, other = pairs[len(pairs) // 2]
    first, second = values_of(one), values_of(other)
    put_values(one, second)
    put_values(other, first)
    names = {one.name, other.name}
    read = next(n for _, node in nodes_of(model) for n in node.input if n in names)
    return read, f"exchanged with {next(iter(names - {read}))}"


def _drop_bias(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    """The bias of a convolution set to zero; of those, the largest."""
    names = {n.input[2] for _, n in nodes_of(model) if n.op_type == "Conv" and len(n.input) > 2}
    found = [weight for weight in weights_of(model) if weight.name in names]
    if not found:
        raise ConfigError(f"{graph} has no bias")
    weight = max(found, key=lambda w: float(np.abs(values_of(w)).max()))
    return put_values(weight, np.zeros_like(values_of(weight))), "bias left out"


def _table(model: Any, word: str) -> Any:
    """The first weight with two axes whose name holds this word."""
    found = [w for w in weights_of(model) if word in w.name and len(w.dims) == 2]
    if not found:
        raise ConfigError(f"{model.graph.name} has no weight called {word}")
    return found[0]


def _shift_rotary(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    weight = _table(model, "rotary")
    return put_values(weight, np.roll(values_of(weight), 1, axis=0)), "rows shifted by one"


def _shift_places(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    weight = _table(model, "place")
    return put_values(weight, np.roll(values_of(weight), 1, axis=0)), "rows shifted by one"


def _wrong_mask(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    """The row of the mask id replaced by that of the id before: an id off by one."""
    spec = bundle.specs[graph]
    sizes = {"codes": bundle.dims.codebook_size + 1, "tokens": bundle.dims.vocabulary + 1}
    masked = any(tensor.below == sizes.get(tensor.role) for tensor in spec.inputs)
    names = {n.input[0] for _, n in nodes_of(model) if n.op_type == "Gather"}
    found = [w for w in weights_of(model) if w.name in names and w.dims[0] in sizes.values()]
    if not found or not (masked or spec.loop_steps):
        raise ConfigError(f"{graph} reads no mask id")
    values = values_of(found[0])
    values[-1] = values[-2]
    return put_values(found[0], values), "row of the mask id taken from the id before"


def _wrong_scale(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    """One factor of the graph, an attention's scale say, 1.25 times as large."""
    scalars = {w.name: w for w in weights_of(model) if not w.dims}

    def scales(node: Any) -> bool:
        return any(name in scalars for name in node.input)

    _, node = pick(model, ("Mul",), scales)
    place = next(n for n, name in enumerate(node.input) if name in scalars)
    values = values_of(scalars[node.input[place]])
    node.input[place] = add_weight(
        model, f"{node.name}_scale", (values * 1.25).astype(values.dtype)
    )
    return node.name, "factor multiplied by 1.25"


def _wrong_epsilon(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    """The epsilon of a norm 0.5 instead of a small number."""
    small = {w.name: w for w in weights_of(model) if not w.dims and 0 < float(values_of(w)) <= 1e-3}
    norms = ("InstanceNormalization", "LayerNormalization")

    def has_epsilon(node: Any) -> bool:
        return node.op_type in norms or any(name in small for name in node.input)

    _, node = pick(model, (*norms, "Add"), has_epsilon)
    if node.op_type in norms:
        kept = [a for a in node.attribute if a.name != "epsilon"]
        del node.attribute[:]
        node.attribute.extend([*kept, import_onnx().helper.make_attribute("epsilon", 0.5)])
    else:
        place = next(n for n, name in enumerate(node.input) if name in small)
        values = np.full_like(values_of(small[node.input[place]]), 0.5)
        node.input[place] = add_weight(model, f"{node.name}_epsilon", values)
    return node.name, "epsilon set to 0.5"


WEIGHT_FAULTS: dict[str, Change] = {
    "put_inf": _put_inf,
    "transpose_weight": _transpose,
    "scale_weight": _scale,
    "flip_sign": _flip_sign,
    "zero_weight": _zero,
    "round_to_4_bits": _round,
    "swap_layers": _swap_layers,
    "drop_bias": _drop_bias,
    "shift_rotary": _shift_rotary,
    "shift_places": _shift_places,
    "wrong_mask_id": _wrong_mask,
    "wrong_scale": _wrong_scale,
    "wrong_epsilon": _wrong_epsilon,
}
