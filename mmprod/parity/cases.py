"""The inputs on which two runners are compared, one case at a time so that memory stays flat.

Stored cases come from the bundle's reference files: real pictures and captions with PyTorch's
outputs. Generated ones are pure functions of the graph, so PyTorch must run beside: noise of every
(batch, seed), and for plain graphs a sweep in which every id occurs, so that no row of an
embedding table or codebook stays unread.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmprod.errors import ConfigError, IntegrityError
from mmprod.graphs.runner import Array, Rivals, example_inputs
from mmprod.graphs.spec import GraphSpec
from mmprod.runners.checks import check_inputs

_KEY = re.compile(r"(\w+)/(in|out|rivals|changes)/(\w+)")
_NEAR = ("rivals", "changes")
"""what only some files and outputs have; see `graphs.runner.Rivals`"""
_HINT = "export the run again; the reference files are written with the graphs"


@dataclass(frozen=True)
class Case:
    """Inputs of one call. `outputs`: what the reference gave when the bundle was made, None for
    generated cases.
    """

    name: str
    inputs: dict[str, Array]
    outputs: dict[str, Array] | None
    sizes: dict[str, int]
    """Sizes of the variable dimensions, e.g. `{"batch": 3}`."""
    rivals: dict[str, Rivals] = field(default_factory=dict)
    """What the reference nearly chose, by output, where that was stored."""

    @property
    def samples(self) -> int:
        return self.sizes.get("batch", 1)


def stored_names(path: Path, spec: GraphSpec) -> list[str]:
    """Groups of a reference file, e.g. `["b1", "b3"]`, each with exactly the graph's inputs and
    outputs.

    Raises IntegrityError when the file cannot be read or a group is incomplete.
    """
    wanted = {*(f"in/{t.name}" for t in spec.inputs), *(f"out/{t.name}" for t in spec.outputs)}
    groups: dict[str, set[str]] = {}
    with _open(path) as archive:
        for key in archive.files:
            match = _KEY.fullmatch(key)
            if match is None:
                raise IntegrityError(f"{path}: unexpected entry {key!r}", hint=_HINT)
            groups.setdefault(match[1], set()).add(f"{match[2]}/{match[3]}")
    for group, found in groups.items():
        for tensor in spec.outputs:
            near = {f"{kind}/{tensor.name}" for kind in _NEAR}
            if tensor.role == "codes" and near <= found:
                found -= near
        if found != wanted:
            odd = ", ".join(sorted(found ^ wanted))
            raise IntegrityError(
                f"{path}: case {group} does not fit {spec.name}: {odd}", hint=_HINT
            )
    return list(groups)


def stored_cases(path: Path, spec: GraphSpec) -> Iterator[Case]:
    """The cases of a reference file. Raises IntegrityError as above, or for inputs that do not fit
    the graph.
    """
    names = stored_names(path, spec)
    with _open(path) as archive:
        for name in names:
            inputs = {t.name: archive[f"{name}/in/{t.name}"] for t in spec.inputs}
            outputs = {t.name: archive[f"{name}/out/{t.name}"] for t in spec.outputs}
            sizes = _sizes(spec, inputs, path)
            yield Case(f"stored {name}", inputs, outputs, sizes, _rivals(archive, name, outputs))


def generated_cases(spec: GraphSpec, batches: Sequence[int], seeds: int) -> Iterator[Case]:
    """The sweep over all ids (plain graphs), then noise of every seed and batch."""
    if not spec.loop_steps:
        for count, inputs in enumerate(sweep_inputs(spec)):
            sizes = {d.name: d.max for d in spec.dims}
            yield Case(f"sweep {count}", inputs, None, sizes)
    for seed in range(seeds):
        for batch in batches:
            sizes = {d.name: batch for d in spec.dims}
            yield Case(
                f"noise b{batch} seed {seed}", example_inputs(spec, batch, seed), None, sizes
            )


def generated_count(spec: GraphSpec, batches: Sequence[int], seeds: int) -> int:
    """How many cases `generated_cases` yields."""
    batch = _largest_batch(spec)
    return seeds * len(batches) + (0 if spec.loop_steps else _sweep_samples(spec, batch) // batch)


def sweep_inputs(spec: GraphSpec) -> Iterator[dict[str, Array]]:
    """Batches of the largest size in which every id of every id input occurs: position i counts on
    from i - 1.
    """
    batch = _largest_batch(spec)
    for start in range(0, _sweep_samples(spec, batch), batch):
        inputs = example_inputs(spec, batch, seed=start)
        for tensor in spec.inputs:
            if tensor.role in ("codes", "tokens"):
                shape = inputs[tensor.name].shape
                ids = np.arange(start * shape[1], (start + batch) * shape[1]) % tensor.below
                inputs[tensor.name] = ids.reshape(shape).astype(tensor.dtype)
        yield inputs


def check_batches(specs: Iterable[GraphSpec], batches: Sequence[int], seeds: int) -> None:
    """Refuse batch sizes no graph is built for, and nothing to do. Raises ConfigError."""
    if seeds < 0 or (seeds > 0 and not batches):
        raise ConfigError(
            f"{seeds} seeds of batches {tuple(batches)} are no cases", hint="give --seeds 1 or more"
        )
    for dim in {d for spec in specs for d in spec.dims}:
        wrong = [batch for batch in batches if not dim.min <= batch <= dim.max]
        if wrong:
            raise ConfigError(
                f"batch {wrong[0]} is outside {dim.min}..{dim.max}, which the graphs are built for",
                hint=f"give --batches between {dim.min} and {dim.max}",
            )


def _sizes(spec: GraphSpec, inputs: dict[str, Array], path: Path) -> dict[str, int]:
    """Sizes of the variable dimensions in stored inputs. Raises IntegrityError when they do not
    fit the graph.
    """
    try:
        return check_inputs(spec, inputs)
    except ConfigError as error:
        raise IntegrityError(f"{path}: {error.message}", hint=_HINT) from error


def _rivals(
    archive: np.lib.npyio.NpzFile, group: str, outputs: dict[str, Array]
) -> dict[str, Rivals]:
    """What was stored of near choices. Raises ValueError for what does not fit the outputs."""
    found = {}
    for name, output in outputs.items():
        if f"{group}/rivals/{name}" not in archive.files:
            continue
        ids, changes = (archive[f"{group}/{kind}/{name}"] for kind in _NEAR)
        whole = ids.dtype == np.int32 and changes.dtype == np.float32
        if not whole or ids.shape != changes.shape or ids.shape[:-1] != output.shape:
            raise ValueError(f"rivals of {group}/{name} do not fit the output")
        if not (changes >= 0).all():
            raise ValueError(f"rivals of {group}/{name} have no valid distance")
        found[name] = Rivals(ids, changes)
    return found


def _largest_batch(spec: GraphSpec) -> int:
    return max((d.max for d in spec.dims), default=1)


def _sweep_samples(spec: GraphSpec, batch: int) -> int:
    """Samples until every id has occurred, in whole batches; 0 for graphs without id inputs."""
    ids = [t for t in spec.inputs if t.role in ("codes", "tokens")]
    needed = max((-(-t.below // t.sizes_at("max")[1]) for t in ids), default=0)
    return -(-needed // batch) * batch


@contextmanager
def _open(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The archive of a reference file; errors of reading it, at any time, become IntegrityError."""
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise IntegrityError(f"{path} is not an npz archive", hint=_HINT)
            yield archive
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", hint=_HINT) from error
