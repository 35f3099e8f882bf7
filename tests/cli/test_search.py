"""`mmprod search` on a run: index, query, delete, optimize, info, verify; and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprod.checkpoint import open_run
from mmprod.data.store import open_split
from mmprod.errors import EnvironmentMissing
from mmprod.manifest import FileEntry, read_json

from .conftest import ROOT, Mmprod, export_graphs

GRAPHS = ("codec_encode", "codec_decode", "embed_image", "embed_text", "fusion_step")


@pytest.fixture(scope="session")
def pictures(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten of the run's own pictures as files, with their captions beside them."""
    folder = tmp_path_factory.mktemp("pictures")
    split = open_split(open_run(run).data_root, "train")
    places = np.arange(10)
    captions = split.captions(places, ("en",), 0)
    for place, pixels in zip(places, split.images(places), strict=True):
        Image.fromarray(pixels).save(folder / f"{place}.png")
        (folder / f"{place}.txt").write_text(captions[place], encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def _made(run: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mmprod.cli.main import main

    place = tmp_path_factory.mktemp("index") / "index"
    with pytest.raises(SystemExit) as caught:
        main(["search", "index", str(run), str(pictures), "--out", str(place), "-q"])
    assert not caught.value.code
    return place


@pytest.fixture
def index(_made: Path, tmp_path: Path) -> Path:
    """An index of the pictures that may be spoilt."""
    return shutil.copytree(_made, tmp_path / "index")


def test_index_follows_the_folder_and_names_what_it_left_out(
    mmprod: Mmprod, run: Path, pictures: Path, index: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(pictures, tmp_path / "p")
    place = tmp_path / "new"
    (folder / "0.png").write_bytes(b"no picture")
    first = mmprod("search", "index", run, folder, "--out", place, "--json").json()
    assert (first["added"], first["pictures"], first["captions"]) == (9, 9, 9)
    assert [Path(entry["file"]).name for entry in first["left"]] == ["0.png"]
    assert first["backend"].startswith("torch")
    (folder / "1.png").unlink()
    shutil.copy(pictures / "0.png", folder / "0.png")
    again = mmprod("search", "index", run, folder, "--out", place, "--prune", "--json").json()
    assert (again["added"], again["same"], again["gone"], again["pictures"]) == (1, 8, 1, 9)
    (folder / "2.png").write_bytes(b"no picture")
    strict = mmprod("search", "index", run, folder, "--out", place, "--strict", "--json")
    assert strict.code == 2
    assert "2.png is of no use" in strict.json()["error"]["message"]
    words = mmprod("search", "index", run, folder, "--out", place)
    assert words.code == 0
    assert "2.png" in words.out and "cannot be decoded" in words.out


def test_a_picture_finds_itself_and_a_caption_its_own_words(
    mmprod: Mmprod, index: Path, pictures: Path
) -> None:
    found = mmprod("search", "query", index, pictures / "3.png", "-k", 3, "--json").json()
    assert found["by"] == "image" and found["exact"] is True
    assert found["hits"][0]["name"] == str(pictures / "3.png")
    assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    words = (pictures / "3.txt").read_text(encoding="utf-8")
    found = mmprod("search", "query", index, words, "--want", "text", "--json").json()
    assert found["by"] == "text"
    assert found["hits"][0]["text"] == words
    assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert [hit["rank"] for hit in found["hits"]] == list(range(1, len(found["hits"]) + 1))
    shown = mmprod("search", "query", index, words)
    assert shown.code == 0
    assert "cosine" in shown.out and "picture" in shown.out


@pytest.mark.parametrize("files", [True, False])
def test_a_sheet_shows_the_query_and_the_hits(
    files: bool, mmprod: Mmprod, run: Path, pictures: Path, tmp_path: Path
) -> None:
    """From the files; or, where they are gone, as the codec remembers them."""
    folder, place = shutil.copytree(pictures, tmp_path / "p"), tmp_path / "index"
    mmprod("search", "index", run, folder, "--out", place, "-q")
    if not files:
        shutil.rmtree(folder)
    sheet = tmp_path / "sheet.png"
    done = mmprod("search", "query", place, pictures / "3.png", "-k", 6, "--sheet", sheet, "--json")
    assert done.json()["sheet"] == str(sheet)
    shown = np.asarray(Image.open(sheet))
    zoom, gap = 128 // 16, 4
    assert {hit["on_sheet"] for hit in done.json()["hits"]} == {
        "from the file" if files else "as the codec remembers them"
    }
    assert shown.shape == (2 * (128 + gap) + gap, 5 * (128 + gap) + gap, 3)
    cells = [shown[gap : gap + 128 : zoom, x : x + 128 : zoom] for x in (gap, gap + 128 + gap)]
    own = np.asarray(Image.open(pictures / "3.png"))
    np.testing.assert_array_equal(cells[0], own)
    assert np.array_equal(cells[1], own) == files


def test_a_sheet_shows_what_was_indexed_not_what_lies_there_now(
    mmprod: Mmprod, run: Path, pictures: Path, tmp_path: Path
) -> None:
    folder, place = shutil.copytree(pictures, tmp_path / "p"), tmp_path / "index"
    mmprod("search", "index", run, folder, "--out", place, "-q")
    Image.new("RGB", (16, 16), "red").save(folder / "3.png")
    sheet = tmp_path / "sheet.png"
    asked = ("search", "query", place, pictures / "3.png", "-k", 10, "--sheet", sheet)
    hits = mmprod(*asked, "--json").json()["hits"]
    told = {Path(hit["name"]).name: hit["on_sheet"] for hit in hits}
    assert told.pop("3.png") == "as the codec remembers them"
    assert {*told.values()} == {"from the file"}
    assert "1 as the codec remembers them" in mmprod(*asked).out
    mmprod("search", "delete", place, "*", "-q")
    sheet.unlink()
    assert mmprod(*asked, "--json").json()["sheet"] is None
    assert not sheet.exists()


def test_likelihoods_that_are_no_numbers_are_refused(
    mmprod: Mmprod, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mmprod.cli.rerank._text_given_pictures",
        lambda source, text, held: np.where(np.arange(len(held)) % 2, np.nan, 0.0),
    )
    refused = mmprod("search", "query", index, "red hair", "--rerank", 10, "--json")
    assert refused.code == 7
    assert "NaN" in refused.json()["error"]["message"]


def test_words_are_words_and_pictures_are_pictures(
    mmprod: Mmprod, index: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(pictures / "3.png", "red")
    Path("folder").mkdir()

    def by(what: str) -> str:
        found: str = mmprod("search", "query", index, what, "--json").json()["by"]
        return found

    assert (by("red"), by("./red"), by("red/blue")) == ("text", "image", "text")
    assert by("a/" * 3000) == "text", "longer than any path"
    assert "is no file" in mmprod("search", "query", index, "./folder").err
    real = Path.is_file

    def closed(path: Path) -> bool:
        if "secret" in str(path):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "is_file", closed)
    refused = mmprod("search", "query", index, "secret/img.png")
    assert refused.code == 2
    assert "cannot be opened: Permission denied" in refused.err


def test_an_index_that_comes_to_nothing_is_not_left_behind(
    mmprod: Mmprod, run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, place = tmp_path / "p", tmp_path / "new"
    folder.mkdir()
    (folder / "0.png").write_bytes(b"no picture")
    asked = ("search", "index", run, folder, "--out", place, "--json")
    broken = mmprod(*asked)
    assert broken.code == 2
    assert "no picture of" in broken.json()["error"]["message"]
    shutil.copy(pictures / "1.png", folder)
    assert mmprod(*asked, "--strict").code == 2
    (folder / "0.png").unlink()
    (folder / "link").symlink_to(pictures)
    strict = mmprod(*asked, "--strict")
    assert strict.code == 2
    assert "linked folders are not followed" in strict.json()["error"]["message"]
    assert not place.exists()

    def refuse(source: object) -> None:
        raise EnvironmentMissing("no runner")

    with monkeypatch.context() as patch:
        patch.setattr("mmprod.cli.search_model.open_embedder", refuse)
        assert mmprod(*asked).code == 3
    assert not place.exists()
    assert mmprod(*asked).json()["pictures"] == 1
    (folder / "1.png").unlink()
    assert mmprod(*asked).code == 2, "an emptied folder may be a mistake"
    emptied = mmprod(*asked, "--prune").json()
    assert (emptied["gone"], emptied["pictures"]) == (1, 0)


def test_delete_takes_brackets_as_they_are(
    mmprod: Mmprod, run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, place = tmp_path / "p", tmp_path / "index"
    folder.mkdir()
    for name in ("img1.png", "img2[1].png"):
        shutil.copy(pictures / "1.png", folder / name)
    mmprod("search", "index", run, folder, "--out", place, "-q")
    assert mmprod("search", "delete", place, folder / "img[1].png").code == 2
    done = mmprod("search", "delete", place, "*/img2[1]*", "--json").json()
    assert done["deleted"] == [str(folder / "img2[1].png")]
    (tmp_path / "linked").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    done = mmprod("search", "delete", place, "linked/../p/img1.png", "--json").json()
    assert done["deleted"] == [str(folder / "img1.png")]


def test_recall_through_towers_and_index_is_that_of_the_evaluation(
    mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    """The whole way: a data set's split, tokenizer, towers, index, Searcher."""
    from mmprod.cli.search_model import open_embedder
    from mmprod.cli.source import open_source
    from mmprod.evaluation.retrieval import recalls
    from mmprod.search import Searcher, open_table

    place, data = tmp_path / "index", open_run(run).data_root
    mmprod("search", "index", run, data, "--split", "train", "--out", place, "-q")
    split = open_split(data, "train")
    places = np.arange(len(split))
    keys, pixels = list(split.keys(places)), split.images(places)
    words = [texts[0] for texts in split.texts(places, ("en",))]
    embedder = open_embedder(open_source(run, None))
    vectors, texts = embedder.pictures(pixels).vectors, embedder.texts(words)
    searcher = Searcher(open_table(str(place)), embedder)
    right = np.array(words)[:, None] == np.array(words)[None, :]
    told = dict(zip(keys, words, strict=True))
    ranks = []
    for text in words:
        hits = searcher.search(text, 10)
        found = [told[Path(hit.name).name] for hit in hits]
        ranks.append(found.index(text) if text in found else len(words))
    shares = {f"R@{depth}": np.mean([r < depth for r in ranks]) for depth in (1, 5, 10)}
    assert shares == pytest.approx(recalls(texts, vectors, right), abs=1e-12)
    embedder.close()


def test_likelihood_gives_another_order_of_the_same_hits(
    mmprod: Mmprod, index: Path, pictures: Path
) -> None:
    words = (pictures / "5.txt").read_text(encoding="utf-8")
    for query, want in ((words, "image"), (pictures / "5.png", "text")):
        asked = ("search", "query", index, query, "--want", want, "-k", 10, "--json")
        plain = mmprod(*asked).json()
        ordered = mmprod(*asked, "--rerank", 10).json()
        assert ordered["score"].startswith("log p")
        scores = [hit["score"] for hit in ordered["hits"]]
        assert scores == sorted(scores, reverse=True) and max(scores) < 0
        assert {hit["name"] for hit in plain["hits"]} == {hit["name"] for hit in ordered["hits"]}


def test_delete_takes_names_and_patterns(mmprod: Mmprod, index: Path, pictures: Path) -> None:
    done = mmprod("search", "delete", index, pictures / "0.png", "*/1.png", "--json")
    assert done.json()["deleted"] == [str(pictures / "0.png"), str(pictures / "1.png")]
    assert (done.json()["pictures"], done.json()["captions"]) == (8, 8)
    missing = mmprod("search", "delete", index, "*/2.png", "absent.png", "--json")
    assert missing.code == 2
    assert "absent.png" in missing.json()["error"]["message"]
    assert mmprod("search", "info", index, "--json").json()["pictures"] == 8, "nothing was deleted"


def test_info_verify_and_partitions(mmprod: Mmprod, run: Path, index: Path) -> None:
    about = mmprod("search", "info", index, "--json").json()
    assert (about["pictures"], about["captions"], about["partitioned"]["image"]) == (
        10, 10, False,
    )  # fmt: skip
    assert about["source"] == str(run.resolve())
    assert set(about["files"]) == {
        "codec/model.safetensors", "fusion/model.safetensors", "tokenizer.json",
    }  # fmt: skip
    optimized = mmprod("search", "optimize", index, "--json").json()
    assert optimized["partitions"] == {"image": 0, "text": 0}, "ten are looked at as they are"
    assert optimized["searches"] == []
    info = mmprod("search", "info", index, "--json").json()
    assert info["partitioned"] == {"image": False, "text": False}
    assert mmprod("search", "verify", index, "--json").json() == {
        "index": str(index), "pictures": 10, "captions": 10,
    }  # fmt: skip
    data = max((index / "items.lance/data").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    for place in range(50, len(content) // 2, 97):
        content[place] ^= 1
    data.write_bytes(content)
    assert mmprod("search", "verify", index).code == 4


def test_another_model_is_refused(
    mmprod: Mmprod, run: Path, pictures: Path, index: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    (other / "tokenizer.json").write_text(
        (run / "tokenizer.json").read_text(encoding="utf-8") + "\n", encoding="utf-8"
    )
    record = read_json(other / "run.json")
    record["files"] = [
        FileEntry.of(other, other / entry["path"]).as_dict() for entry in record["files"]
    ]
    (other / "run.json").write_text(json.dumps(record), encoding="utf-8")
    for arguments in (
        ("query", index, "red hair", "--source", other),
        ("index", other, pictures, "--out", index),
    ):
        refused = mmprod("search", *arguments)
        assert refused.code == 4
        assert "another model" in refused.err and "tokenizer.json differ" in refused.err
        assert f"it was at {run.resolve()}" in refused.err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("query", "ABSENT", "red"), "is no index"),
        (("query", "INDEX", "absent.png"), "absent.png does not exist"),
        (("query", "INDEX", " "), "the query is empty"),
        (("query", "INDEX", "red", "--want", "text", "--rerank", 20), "compares a text"),
        (("query", "INDEX", "red", "--rerank", 5), "orders fewer than the 10"),
        (("query", "INDEX", "red", "--source", "ABSENT"), "does not exist"),
        (("query", "INDEX", "red", "--backend", "ort"), "a run runs on torch"),
        (("query", "INDEX", "red", "--sheet", "PICTURES"), "is a folder"),
        (("query", "ftp://x/y", "red"), "no address"),
        (("index", "RUN", "ABSENT", "--out", "NEW"), "does not exist"),
        (("index", "RUN", "EMPTY", "--out", "NEW"), "holds no pictures"),
        (("index", "RUN", "PICTURES", "--out", "PICTURES"), "exists and is no index"),
        (("index", "RUN", "PICTURES", "--out", "NEW", "--split", "test"), "no prepared data set"),
        (("index", "RUN", "PICTURES", "--out", "NEW", "--precision", "fp16"), "fp32, not in fp16"),
        (("index", "RUN", "PICTURES", "--out", "NEW", "--split", "x", "--prune"), "other splits"),
        (("index", "RUN", "PICTURES", "--out", "NEW", "--precision", "auto"), "of one precision"),
        (("delete", "ABSENT", "x"), "is no index"),
        (("optimize", "PICTURES"), "is no index"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(
    arguments: tuple[object, ...],
    what: str,
    mmprod: Mmprod,
    run: Path,
    pictures: Path,
    index: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    known = {
        "RUN": run, "PICTURES": pictures, "INDEX": index, "ABSENT": tmp_path / "absent",
        "NEW": tmp_path / "new", "EMPTY": tmp_path / "empty",
    }  # fmt: skip
    result = mmprod("search", *(known.get(str(a), a) for a in arguments), "--json")
    assert result.code == 2
    assert what in result.json()["error"]["message"]
    assert result.json()["error"]["hint"]
    assert not (tmp_path / "new").exists()


def test_a_moved_model_is_asked_for(
    mmprod: Mmprod, run: Path, pictures: Path, tmp_path: Path
) -> None:
    moved, place = shutil.copytree(run, tmp_path / "moved"), tmp_path / "index"
    mmprod("search", "index", moved, pictures, "--out", place, "-q")
    shutil.rmtree(moved)
    lost = mmprod("search", "query", place, "red hair")
    assert lost.code == 2 and "--source RUN|BUNDLE" in lost.err
    assert mmprod("search", "query", place, "red hair", "--source", run).code == 0


WITHOUT_TORCH = """
import contextlib, json, sys
sys.modules |= dict.fromkeys(("torch", "onnx", "safetensors"))  # none can be imported
from mmprod.cli.main import main
for arguments in json.load(sys.stdin):
    with contextlib.suppress(SystemExit):
        main(arguments)
    print("---", flush=True)
"""


def test_without_the_extra_it_is_named(
    mmprod: Mmprod, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("mmprod.search")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lancedb", None)
    missing = mmprod("search", "info", index)
    assert missing.code == 3
    assert "mmprod[search]" in missing.err


@pytest.mark.slow
def test_a_bundle_searches_without_torch_what_its_run_has_indexed(
    mmprod: Mmprod, run: Path, index: Path, pictures: Path, tmp_path: Path
) -> None:
    made, opened, _ = export_graphs(run, tmp_path / "bundle", GRAPHS)
    for name, role in (("tokenizer.json", "tokenizer"), ("config.toml", "config")):
        shutil.copyfile(opened.root / name, made.root / name)
        made.add(made.root / name, role=role)
    made.save()
    words = (pictures / "2.txt").read_text(encoding="utf-8")
    query = ["search", "query", str(index), words, "--source", str(made.root), "--json"]
    again = ["search", "index", str(made.root), str(pictures), "--out", str(index), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        input=json.dumps([query, [*query, "--rerank", "10"], again]),
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    by_bundle, ordered, same = map(json.loads, done.stdout.split("---")[:3])
    by_run = mmprod("search", "query", index, words, "--json").json()
    assert by_bundle["backend"].startswith("onnxruntime")
    assert [hit["name"] for hit in by_bundle["hits"]] == [hit["name"] for hit in by_run["hits"]]
    assert len(ordered["hits"]) == 10
    assert (same["same"], same["added"]) == (10, 0)
