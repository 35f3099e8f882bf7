"""`mmprod edit` on a run: what is drawn anew, what is kept, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprod.cli.sheet import read_mask

from .conftest import Mmprod, export_graphs


@pytest.fixture
def face(tmp_path: Path) -> Path:
    """A picture of random colours, 16 x 16, which the square of the model shows whole."""
    path = tmp_path / "face.png"
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(values).save(path)
    return path


def _mask(path: Path, *, columns: int) -> Path:
    """White in the first columns of 16, black elsewhere."""
    values = np.zeros((16, 16), np.uint8)
    values[:, :columns] = 255
    Image.fromarray(values).save(path)
    return path


def test_a_mask_says_which_places_are_drawn_anew(
    mmprod: Mmprod, run: Path, face: Path, tmp_path: Path
) -> None:
    """16 pixels, 4 x 4 places: five columns of pixels touch two columns of places."""
    mask = _mask(tmp_path / "mask.png", columns=5)
    arguments = ("--mask", mask, "-n", 2, "--out", tmp_path / "e.png", "--json")
    told = mmprod("edit", run, face, "a hat", *arguments).json()
    assert (told["drawn"], told["places"], told["from"]) == (8, 16, "")
    wordless = mmprod("edit", run, face, *arguments).json()
    assert wordless["caption"] == "" and wordless["drawn"] == 8


def test_words_alone_draw_a_share_of_the_places_anew(
    mmprod: Mmprod, run: Path, face: Path, tmp_path: Path
) -> None:
    common = ("--out", tmp_path / "e.png", "--json")
    told = mmprod("edit", run, face, "a hat", "--from", "a cap", "--strength", 0.25, *common).json()
    assert (told["drawn"], told["places"], told["from"]) == (4, 16, "a cap")
    own = mmprod("edit", run, face, "a hat", *common).json()
    assert own["drawn"] == round(0.4 * 16)
    said = mmprod("caption", run, face, "--json").json()["captions"][0]["caption"]
    assert own["from"] == said


def test_the_row_starts_with_the_original_and_equal_seeds_give_equal_rows(
    mmprod: Mmprod, run: Path, face: Path, tmp_path: Path
) -> None:
    mask = _mask(tmp_path / "mask.png", columns=8)

    def files(seed: int, name: str) -> list[bytes]:
        folder = tmp_path / name
        arguments = ("--mask", mask, "--seed", seed, "--separate", folder)
        found = mmprod("edit", run, face, *arguments, "--out", tmp_path / "e.png", "--json").json()
        assert len(found["files"]) == 4
        return [Path(file).read_bytes() for file in found["files"]]

    first = files(1, "a")
    np.testing.assert_array_equal(Image.open(tmp_path / "a" / "0.png"), Image.open(face))
    assert first == files(1, "b")
    assert first[1:] != files(2, "c")[1:]


def test_pasted_pixels_are_those_of_the_file(
    mmprod: Mmprod, run: Path, face: Path, tmp_path: Path
) -> None:
    """Five columns white: of the eight that are drawn anew, three are the file's again."""
    mask = _mask(tmp_path / "mask.png", columns=5)

    def version(*arguments: object) -> np.ndarray:
        folder = tmp_path / str(len(arguments))
        common = ("--mask", mask, "-n", 1, "--out", tmp_path / "e.png", "--separate", folder)
        assert mmprod("edit", run, face, *common, *arguments).code == 0
        return np.asarray(Image.open(folder / "1.png"))

    own, plain, pasted = np.asarray(Image.open(face)), version(), version("--paste")
    np.testing.assert_array_equal(pasted[:, 5:], own[:, 5:])
    np.testing.assert_array_equal(pasted[:, :5], plain[:, :5])
    assert (plain[:, 5:] != own[:, 5:]).mean() > 0.5


def test_touches_are_for_what_was_drawn_not_for_the_files_own_pixels(
    mmprod: Mmprod, run: Path, face: Path, tmp_path: Path
) -> None:
    mask, folder = _mask(tmp_path / "mask.png", columns=5), tmp_path / "single"
    common = ("--mask", mask, "-n", 1, "--out", tmp_path / "e.png", "--separate", folder)
    assert mmprod("edit", run, face, *common, "--paste", "--denoise", "--sharpen").code == 0
    own = np.asarray(Image.open(face))
    original, pasted = (np.asarray(Image.open(folder / f"{index}.png")) for index in (0, 1))
    np.testing.assert_array_equal(original, own)
    np.testing.assert_array_equal(pasted[:, 5:], own[:, 5:])


def test_a_thin_line_of_a_large_mask_is_white(tmp_path: Path) -> None:
    """One column of 1,000 in the square of a wide mask; a dot of one pixel in another row."""
    values = np.zeros((1000, 1200), np.uint8)
    values[500:, 100 + 300] = 255
    values[100, 100 + 900] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(values).save(path)
    white = read_mask(path, 16)
    assert sorted(set(zip(*np.nonzero(white), strict=True))) == [(1, 14)] + [
        (row, 4) for row in range(8, 16)
    ]


@pytest.mark.parametrize("judge", ["likelihood", "similarity"])
def test_the_best_version_is_one_of_the_candidates(
    judge: str, mmprod: Mmprod, run: Path, face: Path, tmp_path: Path
) -> None:
    mask = _mask(tmp_path / "mask.png", columns=16)

    def files(*arguments: object) -> list[bytes]:
        folder = tmp_path / str(len(arguments))
        common = ("--mask", mask, "--out", tmp_path / "e.png", "--separate", folder, "--json")
        found = mmprod("edit", run, face, "a hat", *arguments, *common).json()["files"]
        return [Path(file).read_bytes() for file in found[1:]]

    candidates = files("-n", 6)
    best = files("-n", 2, "--best-of", 3, "--by", judge)
    assert len(best) == 2
    assert best[0] in candidates[:3] and best[1] in candidates[3:]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "neither a new caption nor a mask"),
        (["--mask", "white.png", "--strength", "0.5"], "--strength has no effect"),
        (["--mask", "white.png", "--strength", "0"], "--strength has no effect"),
        (["--mask", "white.png", "--from", "x"], "--from has no effect"),
        (["x", "--paste"], "--paste needs a mask"),
        (["--mask", "white.png", "--by", "similarity"], "nothing to be similar to"),
        (["x", "--strength", "0"], "is no share"),
        (["x", "--strength", "1.5"], "is no share"),
        (["--mask", "black.png"], "nothing would change"),
        (["--mask", "absent.png"], "absent.png is of no use"),
    ],
)
def test_requests_that_cannot_be_met(
    arguments: list[str],
    said: str,
    mmprod: Mmprod,
    run: Path,
    face: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(face.parent)
    _mask(Path("white.png"), columns=16)
    _mask(Path("black.png"), columns=0)
    result = mmprod("edit", run, face, *arguments, "--json")
    assert result.code == 2
    assert said in result.json()["error"]["message"]
    assert result.json()["error"]["hint"]


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the run with what an edit needs, and the joint sampler."""
    root = tmp_path_factory.mktemp("bundles") / "mini"
    made, opened, _ = export_graphs(run, root, ("codec_encode", "fusion_step", "edit", "joint"))
    shutil.copyfile(opened.tokenizer_path, made.root / "tokenizer.json")
    made.add(made.root / "tokenizer.json", role="tokenizer")
    made.save()
    return made.root


@pytest.mark.slow
def test_a_bundle_edits_as_the_run_does(
    mmprod: Mmprod, run: Path, bundle: Path, face: Path, tmp_path: Path
) -> None:
    """Equal seeds: equal places, pictures equal but for the last rounding of a colour."""
    shown, told = {}, {}
    for source in (run, bundle):
        for name, words in (
            ("edit", ["edit", source, face, "a hat", "--from", "a cap"]),
            ("joint", ["generate", source, "--joint", "-n", 18]),
        ):
            grid = tmp_path / "grid.png"
            told[source, name] = mmprod(*words, "--seed", 7, "--out", grid, "--json").json()
            shown[source, name] = np.asarray(Image.open(grid)).astype(int)
    for name in ("edit", "joint"):
        assert np.abs(shown[run, name] - shown[bundle, name]).max() <= 1
    assert told[run, "edit"]["drawn"] == told[bundle, "edit"]["drawn"]
    assert told[run, "joint"]["captions"] == told[bundle, "joint"]["captions"]
    assert told[bundle, "edit"]["backend"].startswith("onnxruntime")


@pytest.mark.slow
def test_what_a_bundle_cannot_do_is_refused(
    mmprod: Mmprod, run: Path, bundle: Path, face: Path
) -> None:
    refused = mmprod("edit", bundle, face, "a hat", "--steps", 3, "--json")
    assert refused.code == 2
    assert "samplers built in" in refused.json()["error"]["message"]
    absent = mmprod("generate", bundle, "a hat", "--json")
    assert absent.code == 2
    assert "no graph text_to_image" in absent.json()["error"]["message"]
    assert f"--out {bundle} --replace" in absent.json()["error"]["hint"]
    unknown = mmprod("edit", bundle, face, "a hat", "--from", "x", "--precision", "fp16", "--json")
    assert unknown.code == 2
    assert "no codec_encode in fp16" in unknown.json()["error"]["message"]
    assert unknown.json()["error"]["hint"] == "it holds fp32"
