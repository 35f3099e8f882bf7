"""A bundle in memory: what the folder holds, and how files are added to it.

Writers put a file inside the root, `add` it (which hashes it) and `save` at the end; until then a
reader refuses the folder, because the file is unlisted. Readers get a bundle from `open_bundle`,
which has checked everything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from mmprod.bundle.artefact import ROLES, Artefact
from mmprod.bundle.files import (
    DIGEST,
    FORMAT,
    HINT,
    INDEX,
    check_artefacts,
    check_current,
    check_folder,
    plain_path,
    write_index,
)
from mmprod.config.schema import Dims, SamplerConfig
from mmprod.errors import IntegrityError
from mmprod.graphs.catalog import build_catalog
from mmprod.graphs.spec import GraphSpec
from mmprod.manifest import FileEntry

T = TypeVar("T")
SummaryKind = Literal["parity", "engines", "bench"]
SUMMARIES: tuple[SummaryKind, ...] = ("parity", "engines", "bench")


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
        self._summaries: dict[str, Any] = {}
        self._digest: bytes | None = None  # bundle.sha256 as this handle read or wrote it last

    @classmethod
    def parse(cls, root: Path, content: Mapping[str, Any], digest: bytes) -> Bundle:
        """A bundle from the content of its bundle.json, `digest` being that of its bundle.sha256.

        Raises IntegrityError when malformed.
        """
        try:
            bundle = cls(
                root,
                name=_typed(content["name"], str),
                dims=Dims(**{key: _typed(value, int) for key, value in content["dims"].items()}),
                sampler=SamplerConfig.model_validate(content["sampler"]),
                provenance=_typed(content["provenance"], dict),
            )
            bundle._digest = digest
            bundle._summaries = _typed(content["summaries"], dict)
            for raw in _typed(content["artefacts"], list):
                bundle._list(Artefact.parse(raw))
        except (AttributeError, KeyError, TypeError, ValidationError) as error:
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

        Raises ValueError for an unknown role or graph, IntegrityError for a path outside the root.
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
        """Keep a result in bundle.json. ValueError when `data` is no strict JSON (NaN)."""
        if kind not in SUMMARIES:
            raise ValueError(f"unknown summary {kind!r}, known: {', '.join(SUMMARIES)}")
        self._summaries[kind] = json.loads(json.dumps(data, allow_nan=False))

    def verify(self, artefacts: Iterable[Artefact] | None = None) -> None:
        """Check these artefacts, or with None the whole folder. Raises IntegrityError."""
        if artefacts is None:
            check_folder(self.root, self._artefacts.values())
        else:
            check_artefacts(self.root, artefacts)

    def check_current(self) -> None:
        """Raise IntegrityError when another process saved the bundle since this handle last did or
        was opened: writers call it before they touch a listed file.
        """
        check_current(self.root, self._digest)

    def save(self) -> None:
        """Write bundle.json, then bundle.sha256. Raises IntegrityError, see `check_current`."""
        self.check_current()
        self._digest = write_index(
            self.root,
            {
                "format": FORMAT,
                "name": self.name,
                "dims": asdict(self.dims),
                "sampler": self.sampler.model_dump(),
                "provenance": self.provenance,
                "artefacts": [artefact.as_dict() for artefact in self.artefacts()],
                "summaries": self._summaries,
            },
        )

    def _list(self, artefact: Artefact) -> None:
        """Take an entry read from bundle.json. Raises IntegrityError when it cannot be one."""
        plain_path(self.root, artefact.path)
        if artefact.path in self._artefacts or artefact.path in (INDEX, DIGEST):
            raise IntegrityError(f"{self.root / INDEX} lists {artefact.path} wrongly", hint=HINT)
        if artefact.graph and artefact.graph not in self.specs:
            raise IntegrityError(
                f"{self.root / INDEX}: {artefact.path} is of the unknown graph {artefact.graph!r}",
                hint="use the version of mmprod that wrote the bundle",
            )
        self._artefacts[artefact.path] = artefact

    def _relative(self, path: Path) -> str:
        """POSIX path below the root. `path`: absolute, below the root, or relative to it."""
        absolute = (
            path if path.is_absolute() or path.is_relative_to(self.root) else self.root / path
        )
        name = Path(os.path.relpath(absolute, self.root)).as_posix()
        if name in (INDEX, DIGEST):
            raise ValueError(f"{name} is the bundle's own file")
        return name


def _typed(value: object, kind: type[T]) -> T:
    """`value` if it is of this type (a bool is no int). Raises TypeError."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"not of type {kind.__name__}: {value!r}")
    return value
