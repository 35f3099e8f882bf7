"""Which files are served: those with a parity pass, in the precision asked for."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmprod.bundle import Bundle
from mmprod.errors import ConfigError, EnvironmentMissing, ParityFailed
from mmprod.parity.report import limits_sha256
from mmprod.serving.choose import open_runners
from mmprod.serving.settings import Settings
from tests.parity.toy import make_toy


def row(bundle: Bundle, graph: str, status: str = "pass", leg: str = "torch-ort") -> Any:
    role = "onnx" if leg == "torch-ort" else "engine"
    files = bundle.artefacts(role=role, graph=graph)
    return {
        "leg": leg, "graph": graph, "precision": "fp32", "target": "", "status": status,
        "reason": "so", "sha256": {file.path: file.sha256 for file in files},
    }  # fmt: skip


def proven(bundle: Bundle, *rows: Any) -> Bundle:
    counts = {"ok": True, "pass": 1, "fail": 0, "not run": 0, "reference": "r"}
    summary = {**counts, "limits_sha256": limits_sha256(), "rows": list(rows)}
    bundle.put_summary("parity", summary)
    return bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_toy(tmp_path / "toy")


@pytest.fixture
def settings(bundle: Bundle) -> Settings:
    return Settings(bundle.root, threads=1)


def test_what_has_a_pass_is_served(
    bundle: Bundle, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    proven(bundle, row(bundle, "embed_text"), row(bundle, "codec_decode", "fail"))
    with caplog.at_level(logging.WARNING):
        opened = open_runners(bundle, settings)
    assert list(opened) == ["embed_text"]
    assert (
        opened["embed_text"].sha256 == bundle.artefacts(graph="embed_text", role="onnx")[0].sha256
    )
    assert "not served: onnx/codec_decode.fp32.onnx: no parity pass" in caplog.text


def test_nothing_proven_is_refused_unless_asked(bundle: Bundle, settings: Settings) -> None:
    with pytest.raises(ParityFailed, match="has a parity pass") as caught:
        open_runners(bundle, settings)
    assert "--serve-unproven" in caught.value.hint
    assert len(open_runners(bundle, replace(settings, unproven=True))) == 2


def test_another_precision_or_backend_is_told(bundle: Bundle, settings: Settings) -> None:
    with pytest.raises(ConfigError, match="no graphs in fp16, but fp32"):
        open_runners(bundle, replace(settings, precision="fp16"))
    with pytest.raises(ConfigError, match="no engines in fp32, but none"):
        open_runners(bundle, replace(settings, backend="trt"))


def test_an_engine_needs_its_device(bundle: Bundle, settings: Settings) -> None:
    path = bundle.root / "engines" / "rtx-sm86" / "embed_text.fp32.engine"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"plan")
    bundle.add(path, role="engine", graph="embed_text", precision="fp32")
    proven(bundle, row(bundle, "embed_text", leg="torch-engine"))
    with pytest.raises(EnvironmentMissing):
        open_runners(bundle, replace(settings, backend="trt"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"host": "0.0.0.0"}, "no key"),
        ({"host": "192.168.1.2"}, "no key"),
        ({"host": "example.org"}, "no key"),
        ({"shadow": 1.5}, "no share"),
        ({"port": 9000, "grpc_port": 9000}, "asked for twice"),
    ],
)
def test_settings_that_are_refused(settings: Settings, change: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(settings, **change).check()


@pytest.mark.parametrize("change", [{"host": "0.0.0.0", "key": "k"}, {"host": "::1"}, {}])
def test_settings_that_are_taken(settings: Settings, change: Any) -> None:
    replace(settings, **change).check()
