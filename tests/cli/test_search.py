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
    assert shown.shape == (2 * (128 + gap) + gap, 5 * (128 + gap) + gap, 3)
    cells = [shown[gap : gap + 128 : zoom, x : x + 128 : zoom] for x in (gap, gap + 128 + gap)]
    own = np.asarray(Image.open(pictures / "3.png"))
    np.testing.assert_array_equal(cells[0], own)
    assert np.array_equal(cells[1], own) == files


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
    assert (about["pictures"], about["captions"], about["partitioned"]) == (10, 10, False)
    assert about["source"] == str(run.resolve())
    assert set(about["files"]) == {
        "codec/model.safetensors", "fusion/model.safetensors", "tokenizer.json",
    }  # fmt: skip
    optimized = mmprod("search", "optimize", index, "--json").json()
    assert (optimized["queries"], optimized["recall"]) == (10, 1.0)
    assert mmprod("search", "info", index, "--json").json()["partitioned"] is True
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
