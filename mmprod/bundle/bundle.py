"""A bundle in memory: what the folder holds, and how files are added to it.

Writers put a file inside the root, `add` it (which hashes it) and `save` at the end; until then a
reader refuses the folder, because the file is unlisted. Readers get a bundle from `open_bundle`,
which has checked everything.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from mmprod.bundle.artefact import ROLES, Artefact
from mmprod.bundle.external import check_external_data
from mmprod.bundle.files import (
    FORMAT,
    HINT,
    INDEX,
    OWN,
    Index,
    check_artefacts,
    check_current,
    check_folder,
    plain_path,
    read_index,
    write_index,
    write_signature,
)
from mmprod.bundle.lock import lock_folder
from mmprod.bundle.summaries import SUMMARIES, SummaryKind, check_summaries, is_sound
from mmprod.config.schema import Dims, SamplerConfig
from mmprod.errors import IntegrityError
from mmprod.graphs.catalog import build_catalog
from mmprod.graphs.spec import GraphSpec
from mmprod.manifest import FileEntry

logger = logging.getLogger(__name__)

T = TypeVar("T")

KEYS = frozenset({"format", "name", "dims", "sampler", "provenance", "artefacts", "summaries"})


class Bundle:
    """The content of one bundle folder. `specs`: the graphs of its sizes and samplers, by name."""

    root: Path
    name: str
    dims: Dims
    sampler: SamplerConfig
    provenance: dict[str, Any]
    specs: dict[str, GraphSpec]

    def __init__(
        self,
        root: Path,
        *,
        name: str,
        dims: Dims,
        sampler: SamplerConfig,
        provenance: Mapping[str, Any],
    ) -> None:
        self.root = root
        self.name = name
        self.dims = dims
        self.sampler = sampler
        self.provenance = dict(provenance)
        self.specs = build_catalog(dims, sampler)
        self._artefacts: dict[str, Artefact] = {}
        self._folded: set[str] = set()  # as file systems that ignore case see the listed paths
        self._summaries: dict[str, Any] = {}
        self._digest: bytes | None = None  # bundle.sha256 as this handle read or wrote it last
        self._signed = False
        self._locked = False

    @classmethod
    def parse(cls, root: Path, index: Index) -> Bundle:
        """A bundle from its own files as `read_index` found them. Raises IntegrityError when they
        are malformed.
        """
        content = index.content
        try:
            if unknown := set(content) - KEYS:
                raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
            bundle = cls(
                root,
                name=_typed(content["name"], str),
                dims=Dims(**{key: _size(value) for key, value in content["dims"].items()}),
                sampler=SamplerConfig.model_validate(content["sampler"]),
                provenance=_typed(content["provenance"], dict),
            )
            bundle._digest, bundle._signed = index.line, index.signature is not None
            bundle._summaries = check_summaries(root, _typed(content["summaries"], dict))
            for raw in _typed(content["artefacts"], list):
                bundle._list(Artefact.parse(raw))
        except (AttributeError, KeyError, TypeError, ValueError, ValidationError) as error:
            raise IntegrityError(f"{root / INDEX} is malformed: {error!r}", hint=HINT) from error
        return bundle

    def artefacts(
        self, role: str | None = None, graph: str | None = None, precision: str | None = None
    ) -> list[Artefact]:
        """The artefacts that have all of the given properties, sorted by path."""
        asked = {"role": role, "graph": graph, "precision": precision}
        wanted = {key: value for key, value in asked.items() if value is not None}
        return [
            artefact
            for _, artefact in sorted(self._artefacts.items())
            if all(getattr(artefact, key) == value for key, value in wanted.items())
        ]

    def path(self, artefact: Artefact) -> Path:
        """Where the artefact lies. Raises IntegrityError when a link stands in its place."""
        return plain_path(self.root, artefact.path)

    def add(
        self,
        path: Path,
        *,
        role: str,
        graph: str = "",
        precision: str = "",
        meta: Mapping[str, Any] | None = None,
    ) -> Artefact:
        """List a file that was written inside the root; listing it again takes its new content.

        Raises ValueError for an unknown role or graph or a second name that differs in case only,
        IntegrityError for a path outside the root.
        """
        if role not in ROLES:
            raise ValueError(f"unknown role {role!r}, known: {', '.join(ROLES)}")
        if graph and graph not in self.specs:
            raise ValueError(f"unknown graph {graph!r}, known: {', '.join(self.specs)}")
        name = self._relative(path)
        entry = FileEntry.of(self.root, plain_path(self.root, name))
        content = {**entry.as_dict(), "role": role, "graph": graph, "precision": precision}
        json.dumps(dict(meta or {}), allow_nan=False)  # fail here, where the caller can be seen
        artefact = Artefact.parse({**content, "meta": dict(meta or {})})
        if any(name != other and name.casefold() == other.casefold() for other in self._artefacts):
            raise ValueError(f"{name} differs from a listed file in case only")
        self._artefacts[name] = artefact
        return artefact

    def remove(self, path: Path) -> None:
        """Take a file off the list and delete it. A path that is not listed raises KeyError."""
        name = self._relative(path)
        del self._artefacts[name]
        plain_path(self.root, name).unlink(missing_ok=True)

    @property
    def summaries(self) -> dict[str, Any]:
        """Results kept in bundle.json itself, by kind."""
        return dict(self._summaries)

    def put_summary(self, kind: SummaryKind, data: Any) -> None:
        """Keep a result in bundle.json. ValueError when `data` is no strict JSON (NaN), or not of
        the form that readers rely on (summaries.py).
        """
        if kind not in SUMMARIES:
            raise ValueError(f"unknown summary {kind!r}, known: {', '.join(SUMMARIES)}")
        content = json.loads(json.dumps(data, allow_nan=False))
        if not is_sound(kind, content):
            raise ValueError(f"no summary of this kind has this form: {kind}")
        self._summaries[kind] = content

    def verify(self, artefacts: Iterable[Artefact] | None = None) -> None:
        """Check these artefacts, or with None the whole folder. Raises IntegrityError.

        A graph whose weights lie elsewhere than in the bundle's own files is refused, too.
        """
        chosen = list(self._artefacts.values() if artefacts is None else artefacts)
        if artefacts is None:
            check_folder(self.root, chosen)
        else:
            check_artefacts(self.root, chosen)
        weights = {a.path: a.bytes for a in self.artefacts(role="onnx-data")}
        for artefact in chosen:
            if artefact.role == "onnx":
                check_external_data(self.root, artefact.path, weights)

    def check_current(self) -> None:
        """Raise IntegrityError when another process saved the bundle since this handle last did or
        was opened: writers call it before they touch a listed file.
        """
        check_current(self.root, self._digest)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other writers out, and be sure that none wrote since this handle read the bundle.

        Writers of files put it around all they do, `save` included. Raises IntegrityError, see
        `check_current`, and EnvironmentMissing when another writer does not finish.
        """
        if self._locked:
            yield
            return
        with lock_folder(self.root):
            self._locked = True
            try:
                self.check_current()
                yield
            finally:
                self._locked = False

    @property
    def signed(self) -> bool:
        """Whether a signature lies beside bundle.json; who made it, signing.py tells."""
        return self._signed

    def save(self) -> None:
        """Write bundle.json, then bundle.sha256. A signature is dropped: it was one of the content
        before. Raises as `writing` does.
        """
        content = {
            "format": FORMAT,
            "name": self.name,
            "dims": asdict(self.dims),
            "sampler": self.sampler.model_dump(),
            "provenance": self.provenance,
            "artefacts": [artefact.as_dict() for artefact in self.artefacts()],
            "summaries": self._summaries,
        }
        with self.writing():
            self.check_current()  # an outer `writing` looked when it began
            self._digest = write_index(self.root, content)
        if self._signed:
            logger.warning("%s was changed and has no signature any more: sign it again", self.root)
        self._signed = False

    def seal(self, make: Callable[[bytes], bytes]) -> None:
        """Check the whole folder, then put `make(bytes of bundle.json)` beside it as its signature.

        Raises as `writing` and `verify` do.
        """
        with self.writing():
            index = read_index(self.root)
            Bundle.parse(self.root, index).verify()  # as it lies there, not as this handle has it
            self._digest = write_signature(self.root, index.data, make(index.data))
        self._signed = True

    def _list(self, artefact: Artefact) -> None:
        """Take an entry read from bundle.json. Raises IntegrityError when it cannot be one."""
        plain_path(self.root, artefact.path)
        folded = artefact.path.casefold()
        if folded in self._folded or folded in OWN:
            raise IntegrityError(f"{self.root / INDEX} lists {artefact.path} wrongly", hint=HINT)
        if artefact.graph and artefact.graph not in self.specs:
            raise IntegrityError(
                f"{self.root / INDEX}: {artefact.path} is of the unknown graph {artefact.graph!r}",
                hint="use the version of mmprod that wrote the bundle",
            )
        self._folded.add(folded)
        self._artefacts[artefact.path] = artefact

    def _relative(self, path: Path) -> str:
        """POSIX path below the root. `path`: absolute, below the root, or relative to it."""
        absolute = (
            path if path.is_absolute() or path.is_relative_to(self.root) else self.root / path
        )
        name = Path(os.path.relpath(absolute, self.root)).as_posix()
        if name in OWN:
            raise ValueError(f"{name} is the bundle's own file")
        return name


def _typed(value: object, kind: type[T]) -> T:
    """`value` if it is of this type (a bool is no int). Raises TypeError."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"not of type {kind.__name__}: {value!r}")
    return value


def _size(value: object) -> int:
    """A size that a model can have. Raises TypeError, ValueError."""
    size = _typed(value, int)
    if not 1 <= size < 2**31:
        raise ValueError(f"no size of a model: {size}")
    return size
