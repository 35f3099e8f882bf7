"""Signatures: who vouches for a bundle, and everything that must not pass for it."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmprod.bundle import Bundle, open_bundle
from mmprod.bundle import keys as keys_module
from mmprod.bundle.keys import generate, is_encrypted, load_private, load_public
from mmprod.bundle.signing import (
    require_signature,
    sign,
    sign_file,
    trusted_keys,
    verify_file,
    verify_signature,
)
from mmprod.errors import ConfigError, IntegrityError
from mmprod.manifest import sha256_file

Keys = tuple[Path, Path]


def rehash(root: Path) -> None:
    """bundle.sha256 as sha256sum would write it for what lies there now."""
    names = [name for name in ("bundle.json", "bundle.sig") if (root / name).exists()]
    (root / "bundle.sha256").write_text(
        "".join(f"{sha256_file(root / name)}  {name}\n" for name in names)
    )


def test_a_signature_names_its_key_and_opens_the_bundle(signed: Bundle, keys: Keys) -> None:
    signer = verify_signature(signed, [keys[1]])
    assert signer.key == load_public(keys[1]).id == load_private(keys[0]).id
    assert signer.key_file == keys[1]
    assert signed.signed
    assert open_bundle(signed.root, trusted=[keys[1]]).name == "t"
    subprocess.run(["sha256sum", "-c", "bundle.sha256"], cwd=signed.root, check=True)


def test_the_environment_demands_it_at_every_opening(
    signed: Bundle, keys: Keys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert require_signature(signed) is None
    monkeypatch.setenv("MMPROD_TRUSTED_KEYS", str(keys[1].parent))
    signer = require_signature(signed)
    assert signer is not None
    assert signer.key_file == keys[1]
    open_bundle(signed.root)
    signed.save()
    with pytest.raises(IntegrityError, match="not signed") as caught:
        open_bundle(signed.root, verify=False)
    assert "bundle sign" in caught.value.hint
    other = generate(tmp_path / "other")
    sign(signed, keys[0])
    monkeypatch.setenv("MMPROD_TRUSTED_KEYS", str(other.path))
    with pytest.raises(IntegrityError, match="not among the trusted"):
        open_bundle(signed.root)


@pytest.mark.parametrize("text", ["", ":", "EMPTY"])
def test_a_demand_that_names_no_key_is_an_error(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, signed: Bundle
) -> None:
    monkeypatch.setenv("MMPROD_TRUSTED_KEYS", text.replace("EMPTY", str(tmp_path)))
    for act in (trusted_keys, lambda: open_bundle(signed.root)):
        with pytest.raises(ConfigError, match="names no key"):
            act()


def test_saving_drops_the_signature_and_says_so(
    signed: Bundle, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    signed.save()
    assert "sign it again" in caplog.text
    assert not (signed.root / "bundle.sig").exists()
    assert not open_bundle(signed.root).signed
    caplog.clear()
    signed.save()
    assert not caplog.text
    sign(signed, keys[0])
    assert open_bundle(signed.root, trusted=[keys[1]]).signed


def test_a_signature_is_of_one_content_and_one_key(
    fresh: Callable[[], Path], keys: Keys, tmp_path: Path
) -> None:
    other_key = tmp_path / "other"
    other_public = generate(other_key).path
    changed = open_bundle(fresh())
    changed.name = "another"
    changed.save()
    sign(changed, keys[0])
    victim = fresh()
    shutil.copy(changed.root / "bundle.sig", victim / "bundle.sig")
    rehash(victim)
    with pytest.raises(IntegrityError, match="another content"):
        open_bundle(victim, trusted=[keys[1]])
    forged = fresh()
    sign(open_bundle(forged), other_key)
    with pytest.raises(IntegrityError, match="not among"):
        open_bundle(forged, trusted=[keys[1]])
    content = json.loads((forged / "bundle.sig").read_text())
    content["key"] = load_public(keys[1]).id
    (forged / "bundle.sig").write_text(json.dumps(content))
    rehash(forged)
    with pytest.raises(IntegrityError, match="not by the key"):
        open_bundle(forged, trusted=[keys[1]])
    assert open_bundle(fresh(), trusted=[other_public, keys[1]]).signed


@pytest.mark.parametrize("field", ["algorithm", "kind", "name", "sha256", "signed_at", "signature"])
def test_every_field_of_a_signature_is_covered(signed: Bundle, keys: Keys, field: str) -> None:
    place = signed.root / "bundle.sig"
    content = json.loads(place.read_text())
    value = content[field]
    content[field] = ("B" if value[0] == "A" else "A") + value[1:]
    place.write_text(json.dumps(content))
    rehash(signed.root)
    with pytest.raises(IntegrityError):
        open_bundle(signed.root, trusted=[keys[1]])


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": True},
        {"extra": 1},
        {"signature": "!"},
        {"signed_at": 5},
        {"key": "\x1b[2Jtrust me"},
        {"signed_at": "yesterday"},
        {"sha256": "0"},
    ],
)
def test_a_malformed_signature_is_refused(
    signed: Bundle, keys: Keys, change: dict[str, object]
) -> None:
    place = signed.root / "bundle.sig"
    place.write_text(json.dumps({**json.loads(place.read_text()), **change}))
    rehash(signed.root)
    with pytest.raises(IntegrityError):
        verify_signature(signed, [keys[1]])


def test_only_a_whole_bundle_is_signed(signed: Bundle, keys: Keys) -> None:
    (signed.root / "tokenizer.json").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"tokenizer\.json"):
        sign(signed, keys[0])


def test_what_lies_there_is_signed_and_not_what_a_handle_would_write(
    signed: Bundle, keys: Keys
) -> None:
    path = signed.root / "reports" / "more.json"
    path.write_text("{}")
    signed.add(path, role="report")
    with pytest.raises(IntegrityError, match="not listed"):
        sign(signed, keys[0])
    signed.save()
    sign(signed, keys[0])
    assert open_bundle(signed.root, trusted=[keys[1]]).signed


def test_single_files_are_signed_too_but_never_as_a_bundle(
    tmp_path: Path, keys: Keys, signed: Bundle
) -> None:
    report = tmp_path / "report.json"
    report.write_text("{}")
    assert sign_file(report, keys[0]) == tmp_path / "report.json.sig"
    signer, data = verify_file(report, [keys[1]])
    assert (signer.key, data) == (load_public(keys[1]).id, b"{}")
    report.write_text("{ }")
    with pytest.raises(IntegrityError, match="another content"):
        verify_file(report, [keys[1]])
    index = tmp_path / "bundle.json"
    shutil.copy(signed.root / "bundle.json", index)
    sign_file(index, keys[0])
    shutil.copy(tmp_path / "bundle.json.sig", signed.root / "bundle.sig")
    rehash(signed.root)
    with pytest.raises(IntegrityError, match="signs the 'file'"):
        open_bundle(signed.root, trusted=[keys[1]])


def test_private_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "k"
    generate(path)
    assert path.stat().st_mode & 0o777 == 0o600
    for mode in (0o644, 0o640, 0o604):
        path.chmod(mode)
        with pytest.raises(ConfigError, match="others") as caught:
            load_private(path)
        assert "chmod 600" in caught.value.hint
    with pytest.raises(ConfigError, match="never overwritten"):
        generate(path)
    path.unlink()
    with pytest.raises(ConfigError, match="never overwritten"):
        generate(path)


def test_half_a_pair_of_keys_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = keys_module._write_new

    def full(path: Path, data: bytes, mode: int) -> None:
        if path.suffix == ".pub":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data, mode)

    monkeypatch.setattr(keys_module, "_write_new", full)
    with pytest.raises(OSError, match="No space"):
        generate(tmp_path / "k")
    assert list(tmp_path.iterdir()) == []


def test_a_passphrase_is_needed_where_one_was_given(
    tmp_path: Path, signed: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "k"
    public = generate(path, b"open sesame").path
    assert is_encrypted(path)
    with pytest.raises(ConfigError, match="cannot be opened") as caught:
        sign(signed, path)
    assert "MMPROD_KEY_PASSPHRASE" in caught.value.hint
    with pytest.raises(ConfigError, match="passphrase is wrong"):
        sign(signed, path, passphrase=b"close")
    monkeypatch.setenv("MMPROD_KEY_PASSPHRASE", "open sesame")
    sign(signed, path)
    assert verify_signature(signed, [public]).key_file == public


def test_what_is_no_key_is_said_to_be_none(tmp_path: Path, keys: Keys) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"-----BEGIN PUBLIC KEY-----\n")
    junk.chmod(0o600)
    for load in (load_private, load_public):
        for path in (junk, tmp_path / "absent", tmp_path):
            with pytest.raises(ConfigError):
                load(path)
    with pytest.raises(ConfigError):
        load_public(keys[0])
    with pytest.raises(ConfigError):
        load_private(keys[1]) if keys[1].chmod(0o600) is None else None
    keys[1].chmod(0o644)


def test_bundles_open_without_the_extra() -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "import mmprod.bundle.signing, mmprod.bundle.sbom, mmprod.bundle.archive, mmprod.cli.main"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
