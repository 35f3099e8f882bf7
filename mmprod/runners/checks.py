"""Inputs and outputs against a GraphSpec: the same checks for every Runner. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmprod.errors import ConfigError, IntegrityError
from mmprod.graphs.runner import Array, Arrays
from mmprod.graphs.spec import Dim, GraphSpec, Tensor


def check_inputs(spec: GraphSpec, inputs: Arrays, *, up_to_max: bool = False) -> dict[str, int]:
    """The size of each dimension of `inputs`, e.g. `{"batch": 3}`.

    Names and dtypes must be exactly those of `spec`, shapes must fit it, integers must lie in their
    range (a negative index would be taken silently by some backends). `up_to_max`: sizes above
    `Dim.max` are refused too, as an engine must; other backends have no such limit.
    Raises ConfigError naming the input.
    """
    expected = [tensor.name for tensor in spec.inputs]
    if sorted(inputs) != sorted(expected):
        raise ConfigError(
            f"{spec.name} takes the inputs {expected}, got {sorted(inputs)}",
            hint=f"give exactly: {', '.join(expected)}",
        )
    sizes: dict[str, int] = {}
    for tensor in spec.inputs:
        _check_input(spec, tensor, inputs[tensor.name], sizes)
    for dim in spec.dims:
        size = sizes.get(dim.name, dim.min)
        if size < dim.min or (up_to_max and size > dim.max):
            raise ConfigError(
                f"{spec.name}: {dim.name} {size} is outside {dim.min}..{dim.max}",
                hint=f"split the inputs into batches of {dim.min} to {dim.max}",
            )
    return sizes


def check_outputs(
    spec: GraphSpec, outputs: Sequence[Array], sizes: dict[str, int]
) -> dict[str, Array]:
    """Outputs by name. Raises IntegrityError when their shapes or types are not those of `spec`."""
    if len(outputs) != len(spec.outputs):
        raise IntegrityError(
            f"{spec.name} gave {len(outputs)} outputs, its specification says {len(spec.outputs)}"
        )
    for tensor, value in zip(spec.outputs, outputs, strict=True):
        shape = tensor.sizes(sizes)
        if value.dtype != np.dtype(tensor.dtype) or value.shape != shape:
            raise IntegrityError(
                f"{spec.name}: output {tensor.name} is {value.dtype} {value.shape}, "
                f"its specification says {tensor.dtype} {shape}"
            )
    return {t.name: value for t, value in zip(spec.outputs, outputs, strict=True)}


def _check_input(spec: GraphSpec, tensor: Tensor, value: Array, sizes: dict[str, int]) -> None:
    """Check one input and take the sizes of its dimensions into `sizes`."""
    place = f"{spec.name}: input {tensor.name}"
    wanted = tuple(d.name if isinstance(d, Dim) else d for d in tensor.shape)
    if not isinstance(value, np.ndarray) or value.dtype != np.dtype(tensor.dtype):
        found = getattr(value, "dtype", type(value).__name__)
        raise ConfigError(
            f"{place} is {found}, not {tensor.dtype}", hint=f"give {tensor.dtype} {wanted}"
        )
    fits = value.ndim == len(tensor.shape) and all(
        size == (sizes.setdefault(d.name, size) if isinstance(d, Dim) else d)
        for size, d in zip(value.shape, tensor.shape, strict=True)
    )
    if not fits:
        raise ConfigError(
            f"{place} has the shape {value.shape}, not {wanted}",
            hint="all inputs share the size of a named dimension",
        )
    if tensor.below and value.size and not (value.min() >= 0 and value.max() < tensor.below):
        raise ConfigError(
            f"{place} holds {value.min()}..{value.max()}, outside 0..{tensor.below - 1}",
            hint="are these the codes or tokens of another model?",
        )
