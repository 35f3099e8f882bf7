"""Bundles from before signatures: `first_form.json` is a bundle.json of the first version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprod.bundle import Bundle, open_bundle
from mmprod.bundle.sbom import sbom
from mmprod.cli.bundle_views import file_verdicts
from mmprod.errors import IntegrityError
from mmprod.manifest import sha256_bytes

INDEX = Path(__file__).with_name("first_form.json")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The bundle that the index describes: each file holds its own name, three times."""
    data = INDEX.read_bytes()
    for entry in json.loads(data)["artefacts"]:
        path = tmp_path / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{entry['path']}\n".encode() * 3)
    (tmp_path / "bundle.json").write_bytes(data)
    (tmp_path / "bundle.sha256").write_text(f"{sha256_bytes(data)}  bundle.json\n")
    return tmp_path


def test_it_opens_and_all_of_it_is_read(root: Path) -> None:
    opened = open_bundle(root)
    listed = {entry["path"] for entry in json.loads(INDEX.read_text())["artefacts"]}
    assert {artefact.path for artefact in opened.artefacts()} == listed
    assert not opened.signed
    assert file_verdicts(opened) == {"onnx/codec_encode.fp32.onnx": "torch-ort: pass"}
    assert "not recorded" in json.dumps(sbom(opened))


def test_saved_again_it_is_the_same(root: Path) -> None:
    open_bundle(root).save()
    assert (root / "bundle.json").read_bytes() == INDEX.read_bytes()
    assert isinstance(open_bundle(root), Bundle)


def test_where_a_signature_is_demanded_it_is_refused(
    root: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMPROD_TRUSTED_KEYS", str(keys[1]))
    with pytest.raises(IntegrityError, match="not signed"):
        open_bundle(root)
