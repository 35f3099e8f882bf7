"""The bill of materials against CycloneDX's own schema, offline."""

from __future__ import annotations

import json
from email.message import Message

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from mmprod.bundle import Bundle
from mmprod.bundle.sbom import licence, loaded_software, sbom
from mmprod.errors import IntegrityError


def validated(bundle: Bundle) -> dict[str, object]:
    content = sbom(bundle)
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(content))
    assert error is None, error
    return content


def test_the_document_is_valid_and_complete(signed: Bundle) -> None:
    signed.provenance |= {"software": loaded_software(), "export": {"mmprod": "0.1.0"}}
    content = validated(signed)
    parts = content["components"]
    assert isinstance(parts, list)
    files = {p["name"]: p["hashes"][0]["content"] for p in parts if p["type"] == "file"}
    assert files == {a.path: a.sha256 for a in signed.artefacts()}
    libraries = {p["name"]: p for p in parts if p["type"] == "library"}
    assert {"numpy", "onnx", "pydantic", "cryptography"} <= set(libraries)
    assert libraries["numpy"]["purl"].startswith("pkg:pypi/numpy@")
    assert "BSD" in libraries["numpy"]["licenses"][0]["license"]["name"]
    assert '"mmprod", "version": "0.1.0"' in json.dumps(content["metadata"])
    assert sbom(signed) == content


def test_without_a_list_it_says_that_none_was_recorded(signed: Bundle) -> None:
    content = validated(signed)
    assert "not recorded" in json.dumps(content["metadata"])


def test_another_content_has_another_serial_number(signed: Bundle) -> None:
    before = validated(signed)["serialNumber"]
    (signed.root / "tokenizer.json").write_text("{}")
    signed.add(signed.root / "tokenizer.json", role="tokenizer")
    assert validated(signed)["serialNumber"] != before


@pytest.mark.parametrize("rows", [None, {}, [1], [{"name": "x"}], [{"name": 1, "version": "1"}]])
def test_a_malformed_list_is_refused(signed: Bundle, rows: object) -> None:
    signed.provenance["software"] = rows
    with pytest.raises(IntegrityError, match="software"):
        sbom(signed)


def test_licences_are_taken_from_where_they_stand() -> None:
    def of(*lines: tuple[str, str]) -> str:
        message = Message()
        for key, value in lines:
            message[key] = value
        return licence(message)  # type: ignore[arg-type]

    assert of(("License-Expression", "MIT"), ("License", "other")) == "MIT"
    assert of(("License", "BSD-3-Clause")) == "BSD-3-Clause"
    text = ("License", "Permission is hereby\ngranted")
    assert of(text) == ""
    assert of(text, ("Classifier", "License :: OSI Approved :: MIT License")) == "MIT License"
