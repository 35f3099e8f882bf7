"""Damage a graph on purpose, in a copy of a bundle, so that only parity can notice.

Every damage leaves a valid ONNX file and a manifest with its new hash: what is left to catch it is
the comparison of outputs. The one file of this package that needs onnx, imported when a damage is
done.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmprod.bundle import Bundle, create_bundle
from mmprod.errors import ConfigError, EnvironmentMissing
from mmprod.graphs.runner import Array
from mmprod.graphs.spec import Role
from mmprod.parity.cases import stored_cases

NOISE = 1e-2
"""Standard deviation of added noise."""

SMALL = 128
"""Bytes below which a constant stays inside the file: ONNX Runtime needs shapes to be there."""

_DENSE = ("MatMul", "Gemm", "Conv")
_PASSING = ("Cast", "Transpose", "Reshape", "Identity")


@dataclass(frozen=True)
class Damage:
    """What was done to which initializer of which graph."""

    kind: str
    graph: str
    precision: str
    weight: str
    text: str


def copy_graph(bundle: Bundle, graph: str, precision: str, root: Path) -> Bundle:
    """A bundle in the new folder `root` with one graph and its stored cases. Raises ConfigError
    when there is none.
    """
    chosen = [
        *bundle.artefacts(role="onnx", graph=graph, precision=precision),
        *bundle.artefacts(role="onnx-data", graph=graph, precision=precision),
        *bundle.artefacts(role="reference", graph=graph),
    ]
    if not chosen or chosen[0].role != "onnx":
        raise ConfigError(
            f"{graph} was not exported in {precision}",
            hint=f"mmprod export RUN --precision {precision}",
        )
    bundle.verify(chosen)
    copy = create_bundle(
        root,
        name=bundle.name,
        dims=bundle.dims,
        sampler=bundle.sampler,
        provenance=bundle.provenance,
    )
    for artefact in chosen:
        target = root / artefact.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path(artefact), target)
        copy.add(
            target,
            role=artefact.role,
            graph=artefact.graph,
            precision=artefact.precision,
            meta=artefact.meta,
        )
    copy.save()
    return copy


def damage(bundle: Bundle, kind: str, graph: str, precision: str = "fp32") -> Damage:
    """Damage one weight of a graph in place and list the file with its new hash.

    `kind`: a key of `KINDS`. Raises ConfigError for another kind, a graph that is not there, or one
    without a weight of the kind that is meant.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown damage {kind!r}", hint=f"choose from {', '.join(KINDS)}")
    found = bundle.artefacts(role="onnx", graph=graph, precision=precision)
    if not found:
        raise ConfigError(f"{graph} was not exported in {precision}", hint="mmprod export RUN")
    onnx = _import_onnx()
    path = bundle.path(found[0])
    model = onnx.load(path)
    done = KINDS[kind](bundle, graph, model)
    _save(bundle, graph, precision, path, model)
    return Damage(kind, graph, precision, *done)


def _zero_row(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    weight, values = _largest_dense(graph, model)
    norms = np.square(values, dtype=np.float64).reshape(len(values), -1).sum(axis=1)
    row = int(norms.argmax())
    values[row] = 0
    return _put(weight, values), f"row {row} set to zero"


def _swap_rows(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    """Swap two rows of a codebook or embedding table which the stored cases really read."""
    weight, values, axis, role = _table(bundle, graph, model)
    one, other = _ids_in_use(bundle, graph, role)
    order = np.arange(values.shape[axis])
    order[[one, other]] = other, one
    return _put(weight, values.take(order, axis=axis)), f"rows {one} and {other} swapped"


def _add_noise(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    weight, values = _largest_dense(graph, model)
    noise = np.random.Generator(np.random.Philox(key=[0, 0])).normal(0, NOISE, values.shape)
    return _put(weight, (values + noise).astype(values.dtype)), f"noise of {NOISE:g} added"


def _put_nan(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    weight, values = _largest_dense(graph, model)
    values.flat[0] = np.nan
    return _put(weight, values), "first value set to NaN"


KINDS: dict[str, Callable[[Bundle, str, Any], tuple[str, str]]] = {
    "zero_row": _zero_row,
    "swap_rows": _swap_rows,
    "add_noise": _add_noise,
    "put_nan": _put_nan,
}


def _largest_dense(graph: str, model: Any) -> tuple[Any, Array]:
    """The largest weight that a matrix product or convolution reads as a whole, and a copy of its
    values.
    """
    reached = _reached(model, _DENSE)
    found = [w for w in _weights(model) if w.name in reached and len(w.dims) >= 2]
    if not found:
        raise ConfigError(f"{graph} has no weight of a matrix product or convolution to damage")
    weight = max(found, key=lambda w: (int(np.prod(w.dims)), w.name))
    return weight, _values(weight)


def _table(bundle: Bundle, graph: str, model: Any) -> tuple[Any, Array, int, Role]:
    """The codebook or embedding table, its values, its axis of ids and the role of the ids.

    Tables that are looked up come first; a search only multiplies with its codebook.
    """
    spec, dims = bundle.specs[graph], bundle.dims
    roles = {tensor.role for tensor in (*spec.inputs, *spec.outputs)}
    sizes: dict[Role, int] = {"codes": dims.codebook_size, "tokens": dims.vocabulary}
    looked_up = _reached(model, ("Gather",))
    for role, size in sizes.items():
        found = [
            (weight.name not in looked_up, weight.name, axis, weight)
            for weight in _weights(model)
            if role in roles and len(weight.dims) == 2
            for axis, length in enumerate(weight.dims)
            if length in (size, size + 1)
        ]
        if found:
            _, _, axis, weight = min(found, key=lambda item: item[:3])
            return weight, _values(weight), axis, role
    raise ConfigError(f"{graph} has no codebook or embedding table to damage")


def _ids_in_use(bundle: Bundle, graph: str, role: Role) -> tuple[int, int]:
    """The two most frequent ids of the stored cases, mask ids left out."""
    spec, dims = bundle.specs[graph], bundle.dims
    size = dims.codebook_size if role == "codes" else dims.vocabulary
    names = {tensor.name for tensor in (*spec.inputs, *spec.outputs) if tensor.role == role}
    counts: Counter[int] = Counter()
    for artefact in bundle.artefacts(role="reference", graph=graph):
        for case in stored_cases(bundle.path(artefact), spec):
            arrays = {**case.inputs, **(case.outputs or {})}
            for name in names:
                counts.update(arrays[name][arrays[name] < size].tolist())
    ranked = sorted(counts, key=lambda value: (-counts[value], value))
    if len(ranked) < 2:
        raise ConfigError(f"the stored cases of {graph} read fewer than two {role}")
    return ranked[0], ranked[1]


def _graphs(graph: Any) -> list[Any]:
    """The graph and the bodies of its loops, at every depth."""
    bodies = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return [graph, *(inner for body in bodies for inner in _graphs(body))]


def _reached(model: Any, operators: tuple[str, ...]) -> set[str]:
    """Names that these operators read, also through casts and changes of shape."""
    names: set[str] = set()
    for graph in _graphs(model.graph):
        for node in reversed(graph.node):
            if node.op_type in operators or (
                node.op_type in _PASSING and not names.isdisjoint(node.output)
            ):
                names.update(node.input)
    return names


def _weights(model: Any) -> list[Any]:
    onnx = _import_onnx()
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    return [weight for weight in model.graph.initializer if weight.data_type in floats]


def _values(weight: Any) -> Array:
    values: Array = _import_onnx().numpy_helper.to_array(weight)
    return values.copy()


def _put(weight: Any, values: Array) -> str:
    """Write the values back; the initializer's name."""
    weight.CopyFrom(_import_onnx().numpy_helper.from_array(values, weight.name))
    return str(weight.name)


def _save(bundle: Bundle, graph: str, precision: str, path: Path, model: Any) -> None:
    """Write the model where it was, weights beside it if they were, and list the new hashes."""
    onnx = _import_onnx()
    artefacts = bundle.artefacts(graph=graph, precision=precision)
    beside = [bundle.path(artefact) for artefact in artefacts if artefact.role == "onnx-data"]
    for file in beside:
        file.unlink()  # onnx appends to a file that exists
    if beside:
        onnx.save(
            model,
            path,
            save_as_external_data=True,
            location=beside[0].name,
            size_threshold=SMALL,
        )
    else:
        onnx.save(model, path)
    for artefact in artefacts:
        if artefact.role in ("onnx", "onnx-data"):
            bundle.add(
                bundle.path(artefact),
                role=artefact.role,
                graph=graph,
                precision=precision,
                meta=artefact.meta,
            )
    bundle.save()


def _import_onnx() -> Any:
    try:
        import onnx
        import onnx.numpy_helper
    except ModuleNotFoundError as error:
        raise EnvironmentMissing(
            f"{error.name} is not installed", hint="pip install 'mmprod[export]'"
        ) from error
    return onnx
