"""`mmprod bundle keygen` and `sign`: keys, and signatures made with them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mmprod.cli.command import BundleArg
from mmprod.cli.output import Output, Text, shown
from mmprod.cli.paths import check_file_target
from mmprod.errors import ConfigError


def keygen(
    out: Output,
    target: Annotated[
        Path, typer.Argument(metavar="FILE", help="The private key; FILE.pub gets the public one.")
    ],
    passphrase: Annotated[
        bool,
        typer.Option("--passphrase", help="Encrypt it: asked for, or MMPROD_KEY_PASSPHRASE."),
    ] = False,
) -> None:
    """Make a pair of Ed25519 keys. The private one stays with you; give FILE.pub to devices."""
    from mmprod.bundle.keys import generate

    check_file_target(target)
    public = generate(target, _passphrase(target, new=True) if passphrase else None)
    data = {"private": target, "public": public.path, "key": public.id, "encrypted": passphrase}
    out.result(
        data,
        Text(
            f"private key: {shown(target)} (keep it)\npublic key: {shown(public.path)}\n"
            f"key id: {public.id}\nnext: mmprod bundle sign BUNDLE --key {shown(target)}"
        ),
    )


def sign(
    out: Output,
    bundle: BundleArg,
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Your private key.")],
) -> None:
    """Check every file of a bundle, then sign it. A later change of the bundle drops it."""
    from mmprod.bundle import open_bundle
    from mmprod.bundle.keys import is_encrypted
    from mmprod.bundle.signing import claim_of
    from mmprod.bundle.signing import sign as put

    phrase = _passphrase(key, new=False) if is_encrypted(key) else None
    opened = open_bundle(bundle, verify=False, trusted=())  # sealing checks every file
    place = put(opened, key, passphrase=phrase)
    claim = claim_of(opened)
    assert claim is not None  # it was just written
    data = {"bundle": bundle, "signature": place, "key": claim.key, "signed_at": claim.signed_at}
    out.result(data, Text(f"signed: {shown(bundle)}, key {claim.key}"))


def _passphrase(key: Path, *, new: bool) -> bytes:
    """From the environment, else asked for at a terminal. Raises ConfigError without either."""
    from mmprod.bundle.signing import PASSPHRASE

    text = os.environ.get(PASSPHRASE)
    if text is None and sys.stdin.isatty():
        text = typer.prompt(
            f"passphrase of {key}", hide_input=True, confirmation_prompt=new, err=True
        )
    if not text:
        raise ConfigError(
            f"{key} needs a passphrase and there is nobody to ask", hint=f"set {PASSPHRASE}"
        )
    return text.encode()
