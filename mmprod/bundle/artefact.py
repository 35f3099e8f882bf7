"""One file of a bundle and what it is for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mmprod.errors import IntegrityError
from mmprod.manifest import FileEntry

ROLES = (
    "onnx",
    "onnx-data",
    "engine",
    "engine-info",
    "reference",
    "report",
    "tokenizer",
    "config",
    "codec",
)
"""onnx: a graph; onnx-data: weights too large to lie inside it; engine: a TensorRT plan;
engine-info: how it was built; reference: stored inputs and outputs (npz); report, tokenizer and
config: as they say; codec: which codec this is and its rates (graphs/codec_facts.py)."""

MOST_BYTES = 2**44
"""16 TiB: no file is larger, and every sum of sizes stays a sane number."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@=-]{0,199}(?<!\.)")
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
)


def is_plain(path: str) -> bool:
    """Whether a path reads the same on every file system: relative, names of ASCII letters, digits
    and `_.+@=-`, none hidden, none a device of Windows.

    That leaves no room for `..`, for two spellings of one Unicode name, or for signs that turn the
    direction of writing.
    """
    names = path.split("/")
    return len(names) <= 8 and all(
        _NAME.fullmatch(name) and name.partition(".")[0].lower() not in _DEVICES for name in names
    )


@dataclass(frozen=True)
class Artefact:
    """A file of the bundle: POSIX path below the root, role, graph, precision ("" for none).

    `meta` is free JSON data about the file, e.g. the counts of float types of a graph.
    """

    path: str
    role: str
    graph: str
    precision: str
    sha256: str
    bytes: int
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def entry(self) -> FileEntry:
        """What the file must be, for `manifest.verify_files`."""
        return FileEntry(self.path, self.sha256, self.bytes)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "meta": dict(self.meta)}

    @classmethod
    def parse(cls, raw: object) -> Artefact:
        """Read one entry of bundle.json. Raises IntegrityError when a field is absent or wrong."""
        if not isinstance(raw, dict):
            raise IntegrityError(f"bundle.json: an artefact is not an object: {raw!r}")
        kinds = {
            "path": str,
            "role": str,
            "graph": str,
            "precision": str,
            "sha256": str,
            "bytes": int,
        }
        for name, kind in {**kinds, "meta": dict}.items():
            if not isinstance(raw.get(name), kind):
                raise IntegrityError(
                    f"bundle.json: artefact {raw.get('path')!r} has no valid {name!r}"
                )
        path = raw["path"]
        if not is_plain(path):
            raise IntegrityError(f"bundle.json: not a plain relative path: {path!r}")
        if unknown := set(raw) - {*kinds, "meta"}:
            raise IntegrityError(f"bundle.json: {path} has unknown fields: {sorted(unknown)}")
        if isinstance(raw["bytes"], bool) or not 0 <= raw["bytes"] <= MOST_BYTES:
            raise IntegrityError(f"bundle.json: {path} cannot have {raw['bytes']!r} bytes")
        if not re.fullmatch("[0-9a-f]{64}", raw["sha256"]):
            raise IntegrityError(f"bundle.json: {path} has no SHA-256")
        if raw["role"] not in ROLES:
            raise IntegrityError(f"bundle.json: {path} has the unknown role {raw['role']!r}")
        return cls(**{name: raw[name] for name in kinds}, meta=raw["meta"])
