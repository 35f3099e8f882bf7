"""Damage a graph on purpose, in a copy of a bundle, so that only parity can notice.

Every damage leaves a valid ONNX file and a manifest with its new hash: what is left to catch it is
the comparison of outputs. The four damages here and the shared way to copy, change and save; the
rest of the suite is in faults.py and faults_file.py.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmprod.bundle import Bundle, create_bundle
from mmprod.errors import ConfigError
from mmprod.graphs.runner import Array
from mmprod.graphs.spec import Role
from mmprod.parity.cases import stored_cases
from mmprod.parity.decoder import DECODER
from mmprod.parity.surgery import (
    DENSE,
    block_reading,
    import_onnx,
    put_values,
    reached,
    values_of,
    weights_of,
)

NOISE = 1e-2
"""Standard deviation of added noise."""

Change = Callable[[Bundle, str, Any], tuple[str, str]]
"""(bundle, name of the graph, model, which is changed) -> the weight or node, what was done to it.
"""

SMALL = 128
"""Bytes below which a constant stays inside the file: ONNX Runtime needs shapes to be there."""


@dataclass(frozen=True)
class Damage:
    """What was done to which initializer of which graph."""

    kind: str
    graph: str
    precision: str
    weight: str
    text: str
    block: str = ""
    """The module path where it first takes effect."""


def copy_graph(bundle: Bundle, graph: str, precision: str, root: Path) -> Bundle:
    """A bundle in the new folder `root` with one graph and its stored cases; a reduced sampler
    comes with the decoder that judges its pictures. Raises ConfigError when there is none.
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
    if bundle.specs[graph].loop_steps and precision != "fp32":
        for role in ("onnx", "onnx-data"):
            chosen += bundle.artefacts(role=role, graph=DECODER, precision="fp32")
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


def damage(
    bundle: Bundle,
    kind: str,
    graph: str,
    precision: str = "fp32",
    kinds: Mapping[str, Change] | None = None,
) -> Damage:
    """Damage one weight of a graph in place and list the file with its new hash.

    `kind`: a key of `kinds` (None: of `KINDS`). Raises ConfigError for another kind, a graph that
    is not there, or one without a target of the kind that is meant.
    """
    known = KINDS if kinds is None else kinds
    if kind not in known:
        raise ConfigError(f"unknown damage {kind!r}", hint=f"choose from {', '.join(known)}")
    found = bundle.artefacts(role="onnx", graph=graph, precision=precision)
    if not found:
        raise ConfigError(f"{graph} was not exported in {precision}", hint="mmprod export RUN")
    onnx = import_onnx()
    path = bundle.path(found[0])
    model = onnx.load(path)
    where, text = known[kind](bundle, graph, model)
    block = block_reading(model, where)
    save_model(bundle, graph, precision, path, model)
    return Damage(kind, graph, precision, where, text, block)


def _zero_row(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    weight, values = largest_dense(graph, model)
    norms = np.square(values, dtype=np.float64).reshape(len(values), -1).sum(axis=1)
    row = int(norms.argmax())
    values[row] = 0
    return put_values(weight, values), f"row {row} set to zero"


def _swap_rows(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    """Swap two rows of a codebook or embedding table which the stored cases really read."""
    weight, values, axis, role = find_table(bundle, graph, model)
    one, other = _ids_in_use(bundle, graph, role)
    order = np.arange(values.shape[axis])
    order[[one, other]] = other, one
    return put_values(weight, values.take(order, axis=axis)), f"rows {one} and {other} swapped"


def _add_noise(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    weight, values = largest_dense(graph, model)
    noise = np.random.Generator(np.random.Philox(key=[0, 0])).normal(0, NOISE, values.shape)
    return put_values(weight, (values + noise).astype(values.dtype)), f"noise of {NOISE:g} added"


def _put_nan(bundle: Bundle, graph: str, model: Any) -> tuple[str, str]:
    weight, values = largest_dense(graph, model)
    values.flat[0] = np.nan
    return put_values(weight, values), "first value set to NaN"


KINDS: dict[str, Change] = {
    "zero_row": _zero_row,
    "swap_rows": _swap_rows,
    "add_noise": _add_noise,
    "put_nan": _put_nan,
}


def largest_dense(graph: str, model: Any) -> tuple[Any, Array]:
    """The largest weight that a matrix product or convolution reads as a whole, and a copy of its
    values.
    """
    read = reached(model, DENSE)
    found = [w for w in weights_of(model) if w.name in read and len(w.dims) >= 2]
    if not found:
        raise ConfigError(f"{graph} has no weight of a matrix product or convolution to damage")
    weight = max(found, key=lambda w: (int(np.prod(w.dims)), w.name))
    return weight, values_of(weight)


def find_table(bundle: Bundle, graph: str, model: Any) -> tuple[Any, Array, int, Role]:
    """The codebook or embedding table, its values, its axis of ids and the role of the ids.

    Tables that are looked up come first; a search only multiplies with its codebook.
    """
    spec, dims = bundle.specs[graph], bundle.dims
    roles = {tensor.role for tensor in (*spec.inputs, *spec.outputs)}
    sizes: dict[Role, int] = {"codes": dims.codebook_size, "tokens": dims.vocabulary}
    looked_up = reached(model, ("Gather",))
    for role, size in sizes.items():
        found = [
            (weight.name not in looked_up, weight.name, axis, weight)
            for weight in weights_of(model)
            if role in roles and len(weight.dims) == 2
            for axis, length in enumerate(weight.dims)
            if length in (size, size + 1)
        ]
        if found:
            _, _, axis, weight = min(found, key=lambda item: item[:3])
            return weight, values_of(weight), axis, role
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


def save_model(bundle: Bundle, graph: str, precision: str, path: Path, model: Any) -> None:
    """Write the model where it was, weights beside it if they were, and list the new hashes."""
    onnx = import_onnx()
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
