"""Ed25519 keys in PEM files, as OpenSSL reads and writes them too.

The one file that knows the `cryptography` package (extra `sign`). A private key file is written
0600 and refused when anybody but its owner may read it; it may be encrypted by a passphrase.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mmprod.errors import ConfigError
from mmprod.manifest import flush_folder, sha256_bytes

MOST_BYTES = 64 * 1024
"""No key file is larger."""


@dataclass(frozen=True)
class PublicKey:
    """What a signature is checked with, and the file it came from."""

    path: Path
    _key: Ed25519PublicKey

    @property
    def id(self) -> str:
        """32 hex digits: the head of the SHA-256 of the 32 raw bytes."""
        return _id(self._key)

    def accepts(self, signature: bytes, message: bytes) -> bool:
        """Whether the key's owner made this signature of the message."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class PrivateKey:
    """What signatures are made with."""

    path: Path
    _key: Ed25519PrivateKey

    @property
    def id(self) -> str:
        return _id(self._key.public_key())

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


def generate(path: Path, passphrase: bytes | None = None) -> PublicKey:
    """Write a new private key (0600) to `path` and its public half to `path` + ".pub".

    Raises ConfigError when either exists: no key is ever overwritten.
    """
    public_path = public_half(path)
    for place in (path, public_path):
        if place.exists() or place.is_symlink():
            raise ConfigError(
                f"{place} exists: keys are never overwritten", hint="give another name"
            )
    key = Ed25519PrivateKey.generate()
    cipher: pem.KeySerializationEncryption = (
        pem.BestAvailableEncryption(passphrase) if passphrase else pem.NoEncryption()
    )
    private = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, cipher)
    public = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_new(path, private, 0o600)
    try:
        _write_new(public_path, public, 0o644)
    except BaseException:
        path.unlink()  # half a pair is of no use
        raise
    flush_folder(path.parent)
    return PublicKey(public_path, key.public_key())


def public_half(path: Path) -> Path:
    """Where `generate` puts the public key that belongs to a private one."""
    return path.with_name(path.name + ".pub")


def is_encrypted(path: Path) -> bool:
    """Whether a private key needs a passphrase. Raises as `load_private` does."""
    return b"ENCRYPTED" in _read(path, private=True)


def load_private(path: Path, passphrase: bytes | None = None) -> PrivateKey:
    """Raises ConfigError: no such file, no Ed25519 key, readable by others, wrong passphrase."""
    data = _read(path, private=True)
    try:
        key = pem.load_pem_private_key(data, passphrase)
    except TypeError as error:  # a passphrase is missing, or given for a key that has none
        hint = "set MMPROD_KEY_PASSPHRASE" if passphrase is None else "the key has no passphrase"
        raise ConfigError(f"{path} cannot be opened: {error}", hint=hint) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        what = "the passphrase is wrong or " if passphrase is not None else ""
        raise ConfigError(
            f"{path} cannot be opened: {what}it is not a private key in PEM form",
            hint="mmprod bundle keygen FILE makes one",
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is not an Ed25519 key", hint="mmprod bundle keygen FILE")
    return PrivateKey(path, key)


def load_public(path: Path) -> PublicKey:
    """Raises ConfigError when there is no Ed25519 public key in this file."""
    try:
        key = pem.load_pem_public_key(_read(path, private=False))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} is not a public key in PEM form",
            hint="give the .pub file that mmprod bundle keygen wrote",
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} is not an Ed25519 key", hint="mmprod bundle keygen FILE")
    return PublicKey(path, key)


def _id(key: Ed25519PublicKey) -> str:
    return sha256_bytes(key.public_bytes(pem.Encoding.Raw, pem.PublicFormat.Raw))[:32]


def _read(path: Path, *, private: bool) -> bytes:
    """The file, looked at through one handle so that it cannot change in between."""
    try:
        with path.open("rb") as stream:
            about = os.fstat(stream.fileno())
            if not stat.S_ISREG(about.st_mode) or about.st_size > MOST_BYTES:
                raise ConfigError(f"{path} is not a key file", hint="mmprod bundle keygen FILE")
            if private and about.st_mode & 0o077:
                raise ConfigError(
                    f"{path} can be read by others than its owner: "
                    f"mode {stat.S_IMODE(about.st_mode):04o}",
                    hint=f"chmod 600 {path}; if it lay open for long, make a new key",
                )
            return stream.read()
    except (FileNotFoundError, IsADirectoryError) as error:
        hint = (
            "mmprod bundle keygen FILE makes a pair"
            if private
            else "check the path of the .pub file"
        )
        raise ConfigError(f"{path}: no such key file", hint=hint) from error


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not exist yet; its mode is right from the first byte on."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink()
        raise
