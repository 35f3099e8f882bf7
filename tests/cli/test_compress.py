"""`mmprod compress` and `mmprod decompress`, from a run and from the bundle exported from it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import ROOT, Mmprod, export_graphs
from .drawn import pixels, write

WITHOUT_TORCH = """
import sys
sys.modules |= dict.fromkeys(("torch", "onnx", "safetensors", "tokenizers"))  # none can be imported
from mmprod.cli.main import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's graphs for pictures; the rest of the catalog takes longer to export."""
    from mmprod.checkpoint.identity import codec_facts
    from mmprod.export.pipeline import add_codec_facts

    root = tmp_path_factory.mktemp("bundles") / "mini"
    made, opened, models = export_graphs(run, root, ("codec_encode", "codec_decode", "code_prior"))
    add_codec_facts(made, codec_facts(models.codec, opened.config.codec, opened.dims))
    made.save()
    return made.root


@pytest.mark.parametrize("prior", ["raw", "static", "fusion"])
def test_round_trip_from_a_run(prior: str, mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    picture, file = write(tmp_path / "a.png"), tmp_path / "a.mm"
    made = mmprod("compress", run, picture, "--out", file, "--prior", prior, "--json").json()
    assert made["bytes"] == file.stat().st_size
    assert made["bits_per_pixel"] == pytest.approx(8 * file.stat().st_size / (37 * 50))
    assert made["backend"].startswith("torch")
    back = tmp_path / "back.png"
    assert mmprod("decompress", run, file, "--out", back).code == 0
    assert pixels(back).shape == (37, 50, 3)
    error = np.square(pixels(back).astype(float) - pixels(picture)).mean()
    assert made["pictures"][0]["psnr"] == pytest.approx(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("prior", ["raw", "static"])
def test_portable_files_are_read_by_run_and_bundle_alike(
    prior: str, mmprod: Mmprod, run: Path, bundle: Path, tmp_path: Path
) -> None:
    picture = write(tmp_path / "a.png", 61, 40)
    drawn = {}
    for writer in (run, bundle):
        file = tmp_path / f"{writer.parent.name}.mm"
        options = ("--out", file, "--prior", prior, "--portable")
        assert mmprod("compress", writer, picture, *options).code == 0
        for reader in (run, bundle):
            back = tmp_path / "back.png"
            arguments = ("decompress", reader, file, "--out", back, "--replace")
            assert mmprod(*arguments).code == 0
            drawn[writer, reader] = pixels(back).astype(int)
    for writer in (run, bundle):
        assert np.abs(drawn[writer, run] - drawn[writer, bundle]).max() <= 1


def test_the_same_codes_make_the_same_portable_file_on_both_backends(
    run: Path, bundle: Path
) -> None:
    from mmprod.bitstream import Picture, RawPrior, StaticPrior, static_table, write_file
    from mmprod.bitstream.compressor import Compressor
    from mmprod.cli.source import open_source

    files = []
    for path in (run, bundle):
        source = open_source(path, None)
        facts = source.codec_facts()
        codec = Compressor(source.dims, facts, source.runner).codec
        codes = np.arange(2 * 3 * codec.planes, dtype=np.int32) % codec.book
        picture = Picture(codes, 2 * codec.factor, 3 * codec.factor)
        priors = RawPrior(codec), StaticPrior(codec, static_table(facts.rate, codec.planes))
        files.append([write_file([picture], codec, prior).data for prior in priors])
    assert files[0] == files[1]


def test_a_bundle_compresses_without_torch(bundle: Path, tmp_path: Path) -> None:
    picture, file, back = write(tmp_path / "a.png"), tmp_path / "a.mm", tmp_path / "back.png"
    for arguments in (
        ("compress", bundle, picture, "--out", file, "--prior", "fusion", "--json"),
        ("decompress", bundle, file, "--out", back, "--json"),
    ):
        command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["backend"].startswith("onnxruntime")
    assert pixels(back).shape == (37, 50, 3)


def test_a_fusion_file_of_another_backend_is_refused(
    mmprod: Mmprod, run: Path, bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.mm"
    assert (
        mmprod("compress", run, write(tmp_path / "a.png"), "--out", file, "--prior", "fusion").code
        == 0
    )
    result = mmprod("decompress", bundle, file, "--out", tmp_path / "back.png")
    assert result.code == 3
    assert "PyTorch" in result.err
    assert not (tmp_path / "back.png").exists()


def test_another_codec_is_refused_with_exit_4(
    mmprod: Mmprod, run: Path, bundle: Path, tmp_path: Path
) -> None:
    from mmprod.bundle import open_bundle
    from mmprod.graphs.codec_facts import CodecFacts

    file, other = tmp_path / "a.mm", tmp_path / "other"
    assert mmprod("compress", run, write(tmp_path / "a.png"), "--out", file).code == 0
    shutil.copytree(bundle, other)
    opened = open_bundle(other)
    path = other / "codec.npz"
    rate = CodecFacts.load(path, opened.dims.codebook_size).rate
    path.write_bytes(CodecFacts("ab" * 32, rate).to_bytes())
    opened.add(path, role="codec")
    opened.save()
    result = mmprod("decompress", other, file, "--out", tmp_path / "back.png", "--json")
    assert result.code == 4
    assert "ababab" in result.json()["error"]["message"]
    assert not (tmp_path / "back.png").exists()


def test_a_run_without_a_fusion_stage_compresses(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(run, alone)
    shutil.rmtree(alone / "fusion")
    record = json.loads((alone / "run.json").read_text(encoding="utf-8"))
    del record["stages"]["fusion"]
    record["files"] = [f for f in record["files"] if not f["path"].startswith("fusion/")]
    (alone / "run.json").write_text(json.dumps(record), encoding="utf-8")
    picture, file = write(tmp_path / "a.png"), tmp_path / "a.mm"
    assert mmprod("compress", alone, picture, "--out", file).code == 0
    result = mmprod("compress", alone, picture, "--out", tmp_path / "b.mm", "--prior", "fusion")
    assert result.code == 4
    assert "no trained fusion model" in result.err
    assert not (tmp_path / "b.mm").exists()


def test_info_needs_no_model_and_reads_well(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.mm"
    mmprod("compress", run, write(tmp_path / "a.png"), "--out", file, "--prior", "fusion")
    text = mmprod("decompress", "--info", file).out
    for words in ("50 x 37", "fusion", "PyTorch", f"{file.stat().st_size} bytes", "bits per pixel"):
        assert words in text
    assert mmprod("decompress", run, "--info", file).code == 2


def test_what_cannot_be_is_refused_before_the_work(
    mmprod: Mmprod, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*arguments: object) -> None:
        pytest.fail("the model was opened first")

    monkeypatch.setattr("mmprod.cli.compress.open_source", opened)
    picture = write(tmp_path / "a.png")
    (tmp_path / "there.mm").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ((picture, "--out", tmp_path / "there.mm"), "--replace"),
        ((picture, "--out", picture, "--replace"), "one of the inputs"),
        ((picture, "--out", tmp_path), "is a folder"),
        ((tmp_path / "none.png", "--out", tmp_path / "x.mm"), "does not exist"),
        ((tmp_path / "empty", "--out", tmp_path / "x.mm"), "holds no pictures"),
        ((picture, "--out", tmp_path / "x.mm", "--prior", "fusion", "--portable"), "not portable"),
    ):
        result = mmprod("compress", run, *arguments)
        assert result.code == 2, arguments
        assert words in result.err
    assert mmprod("decompress", run, tmp_path / "there.mm", "--out", tmp_path / "b.png").code == 4
    assert mmprod("decompress", run, tmp_path / "none.mm", "--out", tmp_path / "b.png").code == 2
    assert mmprod("decompress", run).code == 2


def test_hostile_and_broken_pictures_leave_no_file(
    mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    good, file = write(tmp_path / "a.png"), tmp_path / "a.mm"
    (tmp_path / "b.png").write_bytes(good.read_bytes()[:60])
    result = mmprod("compress", run, good, tmp_path / "b.png", "--out", file)
    assert result.code == 2
    assert "b.png is of no use" in result.err
    Image.new("1", (9000, 9000)).save(tmp_path / "c.png")
    huge = mmprod("compress", run, tmp_path / "c.png", "--out", file)
    assert "over 80,000,000 pixels" in huge.err
    assert not file.exists()


def test_a_file_whose_codes_do_not_come_back_is_never_written(
    mmprod: Mmprod, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmprod.bitstream import compressor

    def wrong(*arguments: object) -> list[object]:
        pictures = read(*arguments)
        pictures[0].codes[0] ^= 1
        return pictures

    read = compressor.read_file
    monkeypatch.setattr(compressor, "read_file", wrong)
    file = tmp_path / "a.mm"
    result = mmprod("compress", run, write(tmp_path / "a.png"), "--out", file)
    assert result.code == 4
    assert "does not give back the codes" in result.err
    assert not file.exists()
