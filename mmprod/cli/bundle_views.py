"""What `mmprod bundle inspect` shows: where a bundle came from, what lies in it, and where each of
its figures came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmprod.cli.output import Fields, Table, View, megabytes, shown

if TYPE_CHECKING:
    from mmprod.bundle import Bundle
    from mmprod.bundle.figures import Figure


def inspect_views(
    bundle: Bundle, signature: Mapping[str, Any], found: Sequence[Figure]
) -> list[View]:
    """The bundle for people. found: its figures."""
    dims, sampler = bundle.dims, bundle.sampler
    head = {
        "bundle": f"{bundle.name} ({shown(bundle.root)})",
        "picture": f"{dims.image_size} px, {dims.positions} codes of {dims.codebook_size}",
        "text": f"{dims.text_length} tokens of {dims.vocabulary}",
        "sampler": f"{sampler.image_steps} image steps, {sampler.text_steps} text steps",
        "parity": _parity(bundle.summaries.get("parity")),
        "engines": len(bundle.artefacts(role="engine")) or "none",
        "signature": signature_text(signature),
    }
    verdicts = file_verdicts(bundle)
    rows = [
        (a.path, a.role, a.precision or "-", megabytes(a.bytes), verdicts.get(a.path, "-"))
        for a in bundle.artefacts()
    ]
    views: list[View] = [Fields("", head)]
    origin = _origin(bundle.provenance)
    if origin:
        views.append(Fields("origin", origin))
    views.append(Table("files", ("file", "role", "precision", "size", "parity"), rows))
    return views + (_figures(found) if found else [])


def file_verdicts(bundle: Bundle) -> dict[str, str]:
    """For each file the comparisons that were made of exactly its content, in words."""
    found: dict[str, list[str]] = {}
    hashes = {a.path: a.sha256 for a in bundle.artefacts()}
    for row in (bundle.summaries.get("parity") or {"rows": []})["rows"]:
        for path, digest in row["sha256"].items():
            if path in hashes:
                word = row["status"] if hashes[path] == digest else "of another file"
                found.setdefault(path, []).append(f"{row['leg']}: {word}")
    return {path: ", ".join(words) for path, words in found.items()}


def signature_text(signature: Mapping[str, Any]) -> str:
    """Who vouches for the bundle."""
    if not signature["signed"]:
        return "none"
    who = f"key {signature['key']}, {signature['signed_at']}"
    if signature["confirmed"]:
        return f"{who}, confirmed by {signature['key_file']}"
    return f"claims {who}; not checked: no trusted key was given"


def _parity(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return "never checked: mmprod parity run"
    return ", ".join(f"{summary.get(key, 0)} {key}" for key in ("pass", "fail", "not run"))


def _origin(provenance: Mapping[str, Any]) -> dict[str, str]:
    """The provenance, a line each; the config's hash is that of the run's own file."""
    from mmprod.bundle.figures import in_words, run_files

    found: dict[str, str] = {}
    for key, value in provenance.items():
        if key == "files" and (files := run_files(provenance)):
            found |= {f"run file {path}": f"SHA-256 {digest}" for path, digest in files.items()}
        elif key == "stages" and isinstance(value, dict):
            found |= {f"stage {name}": in_words(record) for name, record in value.items()}
        elif key == "software" and isinstance(value, list):
            found["software"] = f"{len(value)} packages: mmprod bundle sbom lists them"
        else:
            found[key] = in_words(value)
    return found


def _figures(found: Sequence[Figure]) -> list[View]:
    """Each figure with the number of its source, and the sources."""
    sources = list(dict.fromkeys(figure.source for figure in found))
    rows = [(f.name, f.value, f.state, sources.index(f.source) + 1) for f in found]
    return [
        Table("figures", ("figure", "value", "its files are", "source"), rows),
        Fields(
            "sources of the figures", {str(n): source for n, source in enumerate(sources, start=1)}
        ),
    ]
