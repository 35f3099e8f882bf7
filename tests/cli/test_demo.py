"""The demo: its page from known results, and (slow) the whole line with everything after it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mmprod.checkpoint import open_run
from mmprod.cli.demo_page import Results, Scores, headline, next_steps, write_page
from mmprod.cli.main import app
from mmprod.cli.scores import sample
from mmprod.data.store import open_split
from mmprod.parity.report import ParityReport, Row, Subject

from .conftest import Mmprod
from .test_tree import commands


@pytest.fixture
def results(run: Path) -> Results:
    opened = open_run(run)
    faces = sample(open_split(opened.data_root, "train"), 5, ("en",))
    noise = np.random.default_rng(0).integers(0, 256, faces.pictures.shape).astype(np.uint8)
    agreement = {"glasses": 0.75, "hair_color": 0.5, "overall": 0.625}
    rows = (
        Row(Subject("torch-ort", "codec_encode", "fp32"), "pass", "all equal", cases=6),
        Row(Subject("torch-engine", "codec_encode", "fp32", "rtx-sm86"), "not run", "no device"),
    )
    return Results(
        run=opened,
        report=ParityReport("mini", "torch", (1,), 1, rows),
        records=(),
        engines="not built: no library",
        scores=Scores(faces, noise, ("a\x1b[31m<b>",) * 5, noise, 21.26, agreement, agreement, 0.4),
        steps=(("train", 61.0), ("export", 5.4)),
    )


def test_headline_says_what_was_and_was_not_done(results: Results) -> None:
    facts = dict(headline(results))
    assert facts["reconstruction of held-out faces"] == "21.3 dB PSNR"
    assert facts["captions state the face rightly"] == "62%"
    assert facts["parity"] == "1 pass, 0 fail, 1 not run"
    assert facts["engines"] == "0 built, 0 run"
    assert facts["time"] == "1 min 6 s"


def test_page_shows_curves_pictures_tables_and_chance(results: Results, tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", results)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("<svg") == 4
    assert html.count("<img") == 5 * 2 + 5 + 5
    for words in ("not built: no library", "no device", "answers for other faces: 40% overall"):
        assert words in html
    assert "\x1b" not in html
    assert "hair color 50%" in html


def test_next_steps_are_commands_that_exist() -> None:
    known = {" ".join(path) for path in commands(app)}
    for command, _ in next_steps("demo"):
        words = command.split()
        assert words[0] == "mmprod"
        assert words[1] in known or " ".join(words[1:3]) in known


@pytest.mark.slow
def test_whole_line(mmprod: Mmprod, job: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    made = mmprod("demo", "--out", folder, "--config", job, "--target", "sm86", "--json")
    assert made.code == 0, made.err
    data = made.json()
    assert data["parity"]["fail"] == 0
    assert data["parity"]["pass"] == 20
    assert len(data["engines"]) == 10
    assert "<svg" in (folder / "report.html").read_text(encoding="utf-8")
    bundle = folder / "bundle"
    assert mmprod("bundle", "verify", bundle).code == 0
    picture = tmp_path / "face.png"
    assert mmprod("generate", bundle, "a face", "-n", 1, "--out", picture).code == 0
    assert mmprod("caption", bundle, picture).code == 0
    edited = mmprod("edit", bundle, picture, "a hat", "--out", tmp_path / "edited.png", "--json")
    assert edited.json()["drawn"] > 0
    assert mmprod("parity", "run", bundle).code == 0
    assert mmprod("parity", "run", bundle, "--require-engines").code == 3
    assert mmprod("parity", "selftest", bundle).code == 3
    assert mmprod("parity", "sabotage", bundle, "--graph", "codec_decode").code == 0
    cached = mmprod("build", bundle, "--trt", "--precision", "fp16", "--target", "sm86", "--json")
    assert all(engine["cached"] for engine in cached.json()["engines"])
    _every_reader_refuses(mmprod, bundle, tmp_path / "copy", picture)


def _every_reader_refuses(mmprod: Mmprod, bundle: Path, copy: Path, picture: Path) -> None:
    for name in ("onnx/embed_text.fp16.onnx", "engines/rtx-sm86/codec_decode.fp16.plan"):
        shutil.copytree(bundle, copy)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        for command in (
            ("bundle", "verify", copy),
            ("bundle", "inspect", copy),
            ("generate", copy, "a face"),
            ("caption", copy, picture),
            ("edit", copy, picture, "a hat"),
            ("compress", copy, picture, "--out", copy.with_suffix(".mmq")),
            ("parity", "run", copy),
            ("parity", "selftest", copy),
            ("parity", "sabotage", copy),
            ("build", copy, "--trt", "--precision", "fp16", "--target", "sm86"),
        ):
            assert mmprod(*command).code == 4, command
        shutil.rmtree(copy)
