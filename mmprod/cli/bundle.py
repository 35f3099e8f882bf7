"""`mmprod bundle`: what a bundle holds, whether it is whole, and who vouches for it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmprod.cli import keys
from mmprod.cli.bundle_views import file_verdicts, inspect_views, signature_text
from mmprod.cli.command import BundleArg, command, group
from mmprod.cli.output import Output, Text, megabytes, shown
from mmprod.cli.paths import check_file_target

if TYPE_CHECKING:
    from mmprod.bundle import Bundle

app = group("Look into a bundle, check it, sign it, and send it.")
command(app, "keygen")(keys.keygen)
command(app, "sign")(keys.sign)

TrustedOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--trusted",
        metavar="KEY.pub",
        help="Demand a signature by this key; repeatable. Else: MMPROD_TRUSTED_KEYS.",
    ),
]
ArchiveArg = Annotated[
    Path, typer.Argument(metavar="FILE.tar", help="Written by `mmprod bundle pack`.")
]


@command(app, "inspect")
def inspect(out: Output, bundle: BundleArg, trusted: TrustedOption = None) -> None:
    """What is inside, where it and each of its figures came from, and who signed it.

    Checks every file first.
    """
    from mmprod.bundle.figures import figures

    opened, signature = _open(bundle, trusted)
    verdicts, found = file_verdicts(opened), figures(opened)
    data = {
        "bundle": opened.root,
        "name": opened.name,
        "dims": asdict(opened.dims),
        "sampler": opened.sampler.model_dump(),
        "signature": signature,
        "provenance": opened.provenance,
        "artefacts": [
            {**artefact.as_dict(), "parity": verdicts.get(artefact.path)}
            for artefact in opened.artefacts()
        ],
        "figures": [figure.as_dict() for figure in found],
        "summaries": opened.summaries,
    }
    out.result(data, *inspect_views(opened, signature, found))


@command(app, "verify")
def verify(out: Output, bundle: BundleArg, trusted: TrustedOption = None) -> None:
    """Check bundle.json, every file by hash, and the signature; exit 4 names what differs."""
    opened, signature = _open(bundle, trusted)
    artefacts = opened.artefacts()
    size = sum(artefact.bytes for artefact in artefacts)
    text = f"ok: {shown(bundle)}, {len(artefacts)} files, {megabytes(size)}"
    data = {
        "bundle": bundle,
        "ok": True,
        "files": len(artefacts),
        "bytes": size,
        "signature": signature,
    }
    out.result(data, Text(f"{text}\nsignature: {signature_text(signature)}"))


@command(app, "sbom")
def sbom(
    out: Output,
    bundle: BundleArg,
    target: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it there, not to stdout.")
    ] = None,
) -> None:
    """The bill of materials (CycloneDX 1.6): files with hashes, and the software of the export."""
    import json

    from mmprod.bundle import open_bundle
    from mmprod.bundle.sbom import sbom as made_of
    from mmprod.manifest import write_json

    content = made_of(open_bundle(bundle))
    if target is None:
        out.result(content, Text(json.dumps(content, indent=2, ensure_ascii=False)))
        return
    check_file_target(target)
    write_json(target, content)
    count = len(content["components"])
    out.result({"sbom": target, "components": count}, Text(f"{shown(target)}: {count} components"))


@command(app, "pack")
def pack(out: Output, bundle: BundleArg, archive: ArchiveArg) -> None:
    """Write a bundle as one tar file: the same bundle, the same bytes."""
    from mmprod.bundle import open_bundle
    from mmprod.bundle.archive import pack as write
    from mmprod.manifest import sha256_file

    opened = open_bundle(bundle, verify=False)  # `write` checks every file, under the lock
    check_file_target(archive)
    write(opened, archive)
    digest, size = sha256_file(archive), archive.stat().st_size
    data = {"archive": archive, "sha256": digest, "bytes": size}
    out.result(data, Text(f"{shown(archive)}: {megabytes(size)}, SHA-256 {digest}"))


@command(app, "unpack")
def unpack(
    out: Output,
    archive: ArchiveArg,
    target: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A new folder.")],
) -> None:
    """Read a bundle out of a tar file into a new folder; anything but a whole bundle is refused."""
    from mmprod.bundle.archive import unpack as read

    opened = read(archive, target)
    count = len(opened.artefacts())
    data = {"bundle": opened.root, "files": count}
    out.result(data, Text(f"bundle: {shown(opened.root)}, {count} files"))


def _open(bundle: Path, trusted: list[Path] | None) -> tuple[Bundle, dict[str, Any]]:
    """The bundle and what its signature says, confirmed where a key is trusted."""
    from mmprod.bundle import open_bundle
    from mmprod.bundle.signing import claim_of, require_signature, verify_signature

    opened = open_bundle(bundle, trusted=trusted or None)
    claim = claim_of(opened)
    signer = None
    if claim is not None:
        signer = verify_signature(opened, trusted) if trusted else require_signature(opened)
    opened.check_current()  # nobody wrote meanwhile: what was checked is what was opened
    if claim is None:
        return opened, {"signed": False, "confirmed": False}
    about = {"signed": True, "confirmed": signer is not None}
    if signer is not None:
        return opened, {**about, **signer.as_dict()}
    return opened, {**about, "key": claim.key, "signed_at": claim.signed_at}
