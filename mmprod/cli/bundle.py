"""`mmprod bundle`: what a bundle holds, and whether it is whole."""

from __future__ import annotations

from typing import Any

from mmprod.cli.command import BundleArg, command, group
from mmprod.cli.output import Fields, Output, Table, Text, megabytes, shown

app = group("Look into a bundle and check it.")


@command(app, "inspect")
def inspect(out: Output, bundle: BundleArg) -> None:
    """What is inside, where it came from, and the last verdicts. Checks every file first."""
    from dataclasses import asdict

    from mmprod.bundle import open_bundle

    opened = open_bundle(bundle)
    artefacts = opened.artefacts()
    data = {
        "bundle": opened.root,
        "name": opened.name,
        "dims": asdict(opened.dims),
        "sampler": opened.sampler.model_dump(),
        "provenance": opened.provenance,
        "artefacts": [artefact.as_dict() for artefact in artefacts],
        "summaries": opened.summaries,
    }
    dims, sampler = opened.dims, opened.sampler
    fields = {
        "bundle": f"{opened.name} ({shown(opened.root)})",
        "picture": f"{dims.image_size} px, {dims.positions} codes of {dims.codebook_size}",
        "text": f"{dims.text_length} tokens of {dims.vocabulary}",
        "sampler": f"{sampler.image_steps} image steps, {sampler.text_steps} text steps",
        "parity": _parity(opened.summaries.get("parity")),
        "engines": len(opened.artefacts(role="engine")) or "none",
    }
    rows = [(a.path, a.role, a.precision or "-", megabytes(a.bytes)) for a in artefacts]
    columns = ("file", "role", "precision", "size")
    out.result(data, Fields("", fields), Table("", columns, rows))


@command(app, "verify")
def verify(out: Output, bundle: BundleArg) -> None:
    """Check bundle.json and every file by hash; exit 4 names the first that differs."""
    from mmprod.bundle import open_bundle

    artefacts = open_bundle(bundle).artefacts()
    size = sum(artefact.bytes for artefact in artefacts)
    text = f"ok: {shown(bundle)}, {len(artefacts)} files, {megabytes(size)}"
    data = {"bundle": bundle, "ok": True, "files": len(artefacts), "bytes": size}
    out.result(data, Text(text))


def _parity(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return "never checked: mmprod parity run"
    return ", ".join(f"{summary[key]} {key}" for key in ("pass", "fail", "not run"))
