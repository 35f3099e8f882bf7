"""Faults of files: what a copy that broke off, or one from elsewhere, looks like.

Each function changes the folder of a bundle and not its manifest, unless it says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmprod.bundle import Bundle
from mmprod.errors import ConfigError
from mmprod.parity.sabotage import SMALL, save_model
from mmprod.parity.surgery import import_onnx, put_values, values_of, weights_of

FileFault = Callable[[Bundle, str, str], tuple[str, str]]
"""(bundle, graph, precision) -> the file, what was done to it."""


def _onnx(bundle: Bundle, graph: str, precision: str) -> Path:
    return bundle.path(bundle.artefacts(role="onnx", graph=graph, precision=precision)[0])


def _flip_bit(bundle: Bundle, graph: str, precision: str) -> tuple[str, str]:
    path = _onnx(bundle, graph, precision)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path.name, "one bit flipped"


def _cut(bundle: Bundle, graph: str, precision: str) -> tuple[str, str]:
    """Cut off, and listed anew with its new hash."""
    path = _onnx(bundle, graph, precision)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    bundle.add(path, role="onnx", graph=graph, precision=precision)
    bundle.save()
    return path.name, "cut in half and listed anew"


def _missing(bundle: Bundle, graph: str, precision: str) -> tuple[str, str]:
    path = _onnx(bundle, graph, precision)
    path.unlink()
    return path.name, "deleted"


def _extra(bundle: Bundle, graph: str, precision: str) -> tuple[str, str]:
    path = _onnx(bundle, graph, precision)
    path.with_name("extra.onnx").write_bytes(path.read_bytes())
    return "extra.onnx", "put beside the listed files"


def _other_graph(bundle: Bundle, graph: str, precision: str) -> tuple[str, str]:
    """A graph with another interface under this name, listed anew."""
    onnx = import_onnx()
    path = _onnx(bundle, graph, precision)
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch"])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch"])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    other = onnx.helper.make_graph([node], "other", [value], [result])
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(other, opset_imports=opset, ir_version=10), path)
    bundle.add(path, role="onnx", graph=graph, precision=precision)
    bundle.save()
    return path.name, "another graph under this name, listed anew"


def _stale_data(
    bundle: Bundle, graph: str, precision: str, listed: bool = False
) -> tuple[str, str]:
    """Weights beside the graph that come from an earlier state of the training."""
    onnx = import_onnx()
    path = _onnx(bundle, graph, precision)
    model = onnx.load(path)
    large = [w for w in weights_of(model) if int(np.prod(w.dims)) * 4 >= SMALL]
    if not large:
        raise ConfigError(f"{graph} has no weights to keep beside it")
    data = path.with_name(f"{path.name}.data")
    known = bundle.artefacts(role="onnx-data", graph=graph, precision=precision)
    if not known:  # as the exporter does with large models
        data.write_bytes(b"-")
        bundle.add(data, role="onnx-data", graph=graph, precision=precision)
    save_model(bundle, graph, precision, path, model)
    beside = bundle.artefacts(role="onnx-data", graph=graph, precision=precision)[0]
    fresh = path.read_bytes()
    old = onnx.load(path)
    for weight in weights_of(old):
        values = values_of(weight)
        if values.size > 1:
            put_values(weight, (np.roll(values, 1) * 0.9).astype(values.dtype))
    bundle.path(beside).unlink()
    name = bundle.path(beside).name
    onnx.save(old, path, save_as_external_data=True, location=name, size_threshold=SMALL)
    path.write_bytes(fresh)
    if listed:
        bundle.add(bundle.path(beside), role="onnx-data", graph=graph, precision=precision)
        bundle.save()
    return name, "weights of an earlier step" + (", listed anew" if listed else "")


def _stale_listed(bundle: Bundle, graph: str, precision: str) -> tuple[str, str]:
    return _stale_data(bundle, graph, precision, listed=True)


def _plan(bundle: Bundle, graph: str, precision: str) -> Path:
    """A stand-in engine, listed as a real one is: no hash looks inside."""
    folder = bundle.root / "engines" / "rtx-sm86"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{graph}.{precision}.plan"
    path.write_bytes(b"ftrt" + bytes(range(256)) * 16)
    notes = path.with_suffix(".json")
    notes.write_text(json.dumps({"format": 1, "graph": graph}))
    bundle.add(path, role="engine", graph=graph, precision=precision)
    bundle.add(notes, role="engine-info", graph=graph, precision=precision)
    bundle.save()
    return path


def _cut_plan(bundle: Bundle, graph: str, precision: str) -> tuple[str, str]:
    path = _plan(bundle, graph, precision)
    path.write_bytes(path.read_bytes()[:-100])
    return path.name, "engine (a stand-in) cut off"


def _foreign_plan(bundle: Bundle, graph: str, precision: str) -> tuple[str, str]:
    path = _plan(bundle, graph, precision)
    path.write_bytes(path.read_bytes()[::-1])
    return path.name, "engine (a stand-in) of another run in its place"


def _foreign_reference(bundle: Bundle, graph: str, precision: str) -> tuple[str, str]:
    """Reference cases of another run, listed anew: ids of the stored outputs moved on by one."""
    artefact = bundle.artefacts(role="reference", graph=graph)[0]
    path = bundle.path(artefact)
    with np.load(path) as archive:
        arrays = {key: archive[key] for key in archive.files}
    for key, value in arrays.items():
        if "/out/" in key:
            arrays[key] = value[..., ::-1]
    np.savez(path, **arrays)
    bundle.add(path, role="reference", graph=graph)
    bundle.save()
    return path.name, "outputs of another run, listed anew"


FILE_FAULTS: dict[str, FileFault] = {
    "flipped_bit": _flip_bit,
    "cut_graph": _cut,
    "missing_file": _missing,
    "extra_file": _extra,
    "other_graph": _other_graph,
    "stale_data": _stale_data,
    "stale_data_listed": _stale_listed,
    "cut_plan": _cut_plan,
    "foreign_plan": _foreign_plan,
    "foreign_reference": _foreign_reference,
}
