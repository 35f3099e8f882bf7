"""Signatures of bundles and of single files: who vouches for them.

A bundle's signature is the file bundle.sig. It covers the bytes of bundle.json, which holds the
hash of every other file, so it covers the bundle. Saving a bundle again (parity, build) drops it:
whoever signed has not seen the new content. The signed message is one line of JSON that says what
was signed, when, and by which key, then the bytes themselves; a signature of a plain file can
therefore never pass for one of a bundle.

MMPROD_TRUSTED_KEYS (public key files, or folders of *.pub, separated like PATH) makes every
opening of a bundle demand a signature by one of them. What it says nothing about: whether the
signer was right.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprod.bundle.files import INDEX, SIGNATURE, Index, read_index
from mmprod.bundle.strict import strict_json
from mmprod.errors import ConfigError, IntegrityError
from mmprod.manifest import atomic_path, sha256_bytes

if TYPE_CHECKING:
    from mmprod.bundle.bundle import Bundle
    from mmprod.bundle.keys import PublicKey

FORMAT = 1
ALGORITHM = "ed25519"
TRUSTED = "MMPROD_TRUSTED_KEYS"
PASSPHRASE = "MMPROD_KEY_PASSPHRASE"
SIGN = "mmprod bundle sign BUNDLE --key FILE"
FIELDS = ("format", "algorithm", "kind", "name", "sha256", "key", "signed_at", "signature")
FORMS = {
    "sha256": "[0-9a-f]{64}",
    "key": "[0-9a-f]{32}",
    "signed_at": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00",
}
MOST_BYTES = 64 * 1024


@dataclass(frozen=True)
class Claim:
    """What a signature says of itself; worth nothing before a key has confirmed it."""

    kind: str
    name: str
    sha256: str
    key: str
    signed_at: str
    signature: bytes

    @property
    def header(self) -> bytes:
        """The signed line that stands before the signed bytes."""
        about = {
            "format": FORMAT,
            "algorithm": ALGORITHM,
            "kind": self.kind,
            "name": self.name,
            "sha256": self.sha256,
            "key": self.key,
            "signed_at": self.signed_at,
        }
        return json.dumps(about, sort_keys=True).encode() + b"\n"

    def as_bytes(self) -> bytes:
        """The content of a signature file."""
        about = {
            **json.loads(self.header),
            "signature": base64.b64encode(self.signature).decode(),
        }
        return (json.dumps({name: about[name] for name in FIELDS}, indent=2) + "\n").encode()


@dataclass(frozen=True)
class Signer:
    """Whose key confirmed a signature: its id, its file, and when they say they signed (UTC)."""

    key: str
    key_file: Path
    signed_at: str

    def as_dict(self) -> dict[str, str]:
        return {"key": self.key, "key_file": str(self.key_file), "signed_at": self.signed_at}


def sign(bundle: Bundle, key: Path, *, passphrase: bytes | None = None) -> Path:
    """Check the whole bundle, then sign its bundle.json. Returns the path of bundle.sig.

    passphrase: of the key; taken from MMPROD_KEY_PASSPHRASE when None. Raises ConfigError (key),
    IntegrityError (bundle).
    """
    private = _private(key, passphrase)
    bundle.seal(lambda data: _claim("bundle", INDEX, data, private).as_bytes())
    return bundle.root / SIGNATURE


def verify_signature(bundle: Bundle | Path, public_keys: Sequence[Path]) -> Signer:
    """Whose key signed the bundle as it lies on disk. Raises IntegrityError when none of these."""
    root = bundle if isinstance(bundle, Path) else bundle.root
    return check_index(root, read_index(root), public_keys)


def require_signature(bundle: Bundle | Path) -> Signer | None:
    """`verify_signature` with the keys of MMPROD_TRUSTED_KEYS; None when that is not set."""
    keys = trusted_keys()
    return None if keys is None else verify_signature(bundle, keys)


def claim_of(bundle: Bundle | Path) -> Claim | None:
    """What the bundle's signature says of itself, unconfirmed; None where there is none."""
    root = bundle if isinstance(bundle, Path) else bundle.root
    raw = read_index(root).signature
    return None if raw is None else parse_claim(raw, root / SIGNATURE)


def check_index(root: Path, index: Index, public_keys: Sequence[Path]) -> Signer:
    """As `verify_signature`, on a bundle.json that was read already."""
    if index.signature is None:
        raise IntegrityError(
            f"{root} is not signed, and a signature by a trusted key is demanded", hint=SIGN
        )
    claim = parse_claim(index.signature, root / SIGNATURE)
    return _confirm(claim, ("bundle", INDEX), index.data, public_keys, root / SIGNATURE)


def sign_file(path: Path, key: Path, *, passphrase: bytes | None = None) -> Path:
    """Sign a single file. Returns the path of the signature, `path` + ".sig"."""
    private = _private(key, passphrase)
    place = signature_of(path)
    with atomic_path(place) as temporary:
        temporary.write_bytes(_claim("file", path.name, path.read_bytes(), private).as_bytes())
    return place


def verify_file(path: Path, public_keys: Sequence[Path]) -> tuple[Signer, bytes]:
    """Whose key signed this file, by the signature beside it, and the very bytes that it covers: a
    second reading could find others. Raises IntegrityError.
    """
    place = signature_of(path)
    try:
        data, raw = path.read_bytes(), place.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{error.filename} cannot be read: {error.strerror}") from error
    claim = parse_claim(raw, place)
    return _confirm(claim, ("file", path.name), data, public_keys, place), data


def signature_of(path: Path) -> Path:
    """Where `sign_file` puts the signature of a file."""
    return path.with_name(path.name + ".sig")


def trusted_keys() -> tuple[Path, ...] | None:
    """The files that MMPROD_TRUSTED_KEYS names; None when it is not set.

    Raises ConfigError when it is set but names no key: a demand is not dropped by a typing error.
    """
    text = os.environ.get(TRUSTED)
    if text is None:
        return None
    found: list[Path] = []
    for part in filter(None, text.split(os.pathsep)):
        path = Path(part)
        found += sorted(path.glob("*.pub")) if path.is_dir() else [path]
    if not found:
        raise ConfigError(
            f"{TRUSTED} is set but names no key: {text!r}",
            hint=f"name .pub files or a folder of them, or unset {TRUSTED}",
        )
    return tuple(found)


def parse_claim(raw: bytes, place: Path) -> Claim:
    """The content of a signature file. Raises IntegrityError; checks no signature yet."""
    content = strict_json(raw, place) if len(raw) <= MOST_BYTES else None
    if not isinstance(content, dict) or set(content) != set(FIELDS):
        raise IntegrityError(f"{place} is not a signature of mmprod", hint=SIGN)
    if type(content["format"]) is not int or content["format"] != FORMAT:
        raise IntegrityError(
            f"{place} has format {content['format']!r}; this version of mmprod reads {FORMAT}",
            hint="use the version of mmprod that signed it, or sign again with this one",
        )
    texts: dict[str, Any] = {name: content[name] for name in FIELDS[1:]}
    if texts.pop("algorithm") != ALGORITHM or not all(isinstance(v, str) for v in texts.values()):
        raise IntegrityError(f"{place} is not a signature by {ALGORITHM}", hint=SIGN)
    for name, form in FORMS.items():  # they are shown before a key has confirmed them
        if not re.fullmatch(form, texts[name], re.ASCII):
            raise IntegrityError(f"{place} has no valid {name!r}", hint=SIGN)
    try:
        text = texts.pop("signature")
        signature = base64.b64decode(text, validate=True)
        if base64.b64encode(signature).decode() != text:
            raise ValueError("another spelling of the same bytes")
    except (binascii.Error, ValueError) as error:
        raise IntegrityError(f"{place}: the signature is not base64", hint=SIGN) from error
    return Claim(**texts, signature=signature)


def _claim(kind: str, name: str, data: bytes, key: Any) -> Claim:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    blank = Claim(kind, name, sha256_bytes(data), key.id, now, b"")
    return Claim(kind, name, blank.sha256, key.id, now, key.sign(blank.header + data))


def _confirm(
    claim: Claim, what: tuple[str, str], data: bytes, public_keys: Sequence[Path], place: Path
) -> Signer:
    if (claim.kind, claim.name) != what:
        raise IntegrityError(
            f"{place} signs the {claim.kind!r} {claim.name!r}, not the {what[0]} {what[1]!r}"
        )
    if claim.sha256 != sha256_bytes(data):
        raise IntegrityError(f"{place} signs another content than {what[1]} has", hint=SIGN)
    keys = _public(public_keys)
    for key in keys:
        if key.id == claim.key:
            if key.accepts(claim.signature, claim.header + data):
                return Signer(key.id, key.path, claim.signed_at)
            raise IntegrityError(f"{place}: the signature is not by the key {claim.key}", hint=SIGN)
    raise IntegrityError(
        f"{place}: signed with the key {claim.key}, which is not among the trusted ones",
        hint="trusted: " + ", ".join(f"{key.id} ({key.path})" for key in keys),
    )


def _public(paths: Sequence[Path]) -> list[PublicKey]:
    from mmprod.bundle.keys import load_public  # the extra is needed only where keys are

    if not paths:
        raise ConfigError("no trusted key was given", hint="--trusted KEY.pub")
    return [load_public(path) for path in paths]


def _private(path: Path, passphrase: bytes | None) -> Any:
    from mmprod.bundle.keys import load_private  # the extra is needed only where keys are

    if passphrase is None and (text := os.environ.get(PASSPHRASE)):
        from mmprod.bundle.keys import is_encrypted

        passphrase = text.encode() if is_encrypted(path) else None
    return load_private(path, passphrase)
