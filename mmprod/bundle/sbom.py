"""What a bundle is made of, as a CycloneDX 1.6 document (JSON).

Its files stand in it with their hashes, and the software whose code was loaded when it was
exported, which the export notes in the bundle's provenance. The document holds no time and no
random number: the same bundle gives the same bytes.
"""

from __future__ import annotations

import re
import sys
import uuid
from collections.abc import Mapping
from importlib import metadata
from typing import Any
from urllib.parse import quote

from mmprod.bundle.bundle import Bundle
from mmprod.errors import IntegrityError
from mmprod.manifest import sha256_bytes

SPEC = "1.6"
SOFTWARE = "software"
"""Key in the provenance."""
NAMESPACE = uuid.UUID("7b2f7d0e-57a0-5d0c-9b3c-0c1f3a5f8e11")


def loaded_software() -> list[dict[str, str]]:
    """The installed distributions whose code this process has loaded: name, version, licence ("" if
    its metadata names none), sorted by name.
    """
    owners = metadata.packages_distributions()
    tops = {name.partition(".")[0] for name in list(sys.modules)}
    names = {owner for top in tops for owner in owners.get(top, ())}
    found = [metadata.distribution(name) for name in names]
    rows = {
        dist.metadata["Name"]: {
            "name": dist.metadata["Name"],
            "version": dist.version,
            "licence": licence(dist.metadata),
        }
        for dist in found
    }
    return [rows[name] for name in sorted(rows, key=str.lower)]


def licence(about: metadata.PackageMetadata) -> str:
    """What a distribution's metadata says of its licence, in one line; "" if nothing."""
    fields: dict[str, list[str]] = {}
    for key in ("License-Expression", "License", "Classifier"):
        fields[key] = about.get_all(key) or []
    for text in (*fields["License-Expression"], *fields["License"]):
        if text.strip() and "\n" not in text.strip() and len(text) <= 120:
            return text.strip()
    names = [c.rpartition(" :: ")[2] for c in fields["Classifier"] if c.startswith("License :: ")]
    return " and ".join(names)


def sbom(bundle: Bundle) -> dict[str, Any]:
    """The bill of materials. Raises IntegrityError when the provenance's list is malformed."""
    files = [
        {
            "type": "file",
            "bom-ref": f"file:{artefact.path}",
            "name": artefact.path,
            "hashes": [{"alg": "SHA-256", "content": artefact.sha256}],
            "properties": _properties(
                {
                    "role": artefact.role,
                    "graph": artefact.graph,
                    "precision": artefact.precision,
                    "bytes": str(artefact.bytes),
                }
            ),
        }
        for artefact in bundle.artefacts()
    ]
    libraries = [_library(row) for row in _software(bundle)]
    root = {
        "type": "machine-learning-model",
        "bom-ref": "bundle",
        "name": bundle.name,
        "properties": _properties(
            {
                "run": str(bundle.provenance.get("run", "")),
                "data": str(bundle.provenance.get("data", "")),
                # without a list this is no statement that nothing was used
                "software-list": "loaded at export" if libraries else "not recorded",
            }
        ),
    }
    content = repr([(a.path, a.sha256) for a in bundle.artefacts()]).encode()
    components = files + libraries
    refs = [component["bom-ref"] for component in components]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, sha256_bytes(content))}",
        "version": 1,
        "metadata": {"component": root, **_tools(bundle)},
        "components": components,
        "dependencies": [{"ref": "bundle", "dependsOn": refs}],
    }


def _tools(bundle: Bundle) -> dict[str, Any]:
    """mmprod itself, as the export noted it."""
    versions = bundle.provenance.get("export")
    version = versions.get("mmprod") if isinstance(versions, dict) else None
    if not isinstance(version, str):
        return {}
    tool = {"type": "application", "name": "mmprod", "version": version}
    return {"tools": {"components": [tool]}}


def _software(bundle: Bundle) -> list[Mapping[str, str]]:
    rows = bundle.provenance.get(SOFTWARE, [])
    keys = ("name", "version", "licence")
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and all(isinstance(row.get(key), str) for key in keys) for row in rows
    ):
        raise IntegrityError(f"{bundle.root}: the provenance's list of software is malformed")
    names = [_normal(row["name"]) for row in rows]
    if len(set(names)) != len(names) or "" in names:
        raise IntegrityError(f"{bundle.root}: the provenance's list of software names one twice")
    return rows


def _library(row: Mapping[str, str]) -> dict[str, Any]:
    purl = f"pkg:pypi/{quote(_normal(row['name']))}@{quote(row['version'], safe='.')}"
    about = {
        "type": "library",
        "bom-ref": purl,
        "name": row["name"],
        "version": row["version"],
        "purl": purl,
    }
    if not row["licence"]:
        return about
    return {**about, "licenses": [{"license": {"name": row["licence"]}}]}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _properties(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": f"mmprod:{key}", "value": value} for key, value in values.items() if value]
