"""The index behind the model `search`: only of this bundle, and only pictures that were indexed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprod.bundle import Bundle, create_bundle
from mmprod.errors import ConfigError, IntegrityError
from mmprod.manifest import sha256_file
from mmprod.search import About, Item, Table, create_table
from mmprod.search.about import FILES
from mmprod.serving import index as module
from mmprod.serving.index import GRAPHS, PictureIndex, picture_of
from tests.serving.fakes import DIMS, SAMPLER

WEIGHTS = {name: str(number) * 64 for number, name in enumerate(FILES)}
FP32 = dict.fromkeys(GRAPHS, "fp32")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    about = About(WEIGHTS, "fp32", DIMS.embedding, DIMS.positions, "/run")
    return create_table(str(tmp_path / "index"), about)


def bundle(root: Path, **changed: str) -> Bundle:
    files = [{"path": name, "sha256": value} for name, value in (WEIGHTS | changed).items()]
    provenance = {"files": files}
    return create_bundle(root, name="b", dims=DIMS, sampler=SAMPLER, provenance=provenance)


def test_only_the_model_of_the_index_is_served_with_it(table: Table, tmp_path: Path) -> None:
    searcher = PictureIndex(table)
    searcher.check(bundle(tmp_path / "same"), FP32)
    other = bundle(tmp_path / "other", **{"tokenizer.json": "f" * 64})
    with pytest.raises(IntegrityError, match=r"another model than .*other: tokenizer.json differ"):
        searcher.check(other, FP32)
    with pytest.raises(ConfigError, match="embed_text is served in fp16"):
        searcher.check(bundle(tmp_path / "half"), FP32 | {"embed_text": "fp16"})
    with pytest.raises(ConfigError, match="embed_image is not served"):
        searcher.check(bundle(tmp_path / "part"), {"codec_encode": "fp32", "embed_text": "fp32"})
    nothing = create_bundle(tmp_path / "no", name="b", dims=DIMS, sampler=SAMPLER, provenance={})
    with pytest.raises(ConfigError, match="does not say"):
        searcher.check(nothing, FP32)


def picture(path: Path, form: str) -> Path:
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(path, form)
    return path


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_a_picture_that_was_indexed_is_given_whole(form: str, tmp_path: Path) -> None:
    path = picture(tmp_path / "x", form)
    content, size = sha256_file(path), path.stat().st_size
    assert picture_of(str(path), content, size) == path.read_bytes()
    assert picture_of(str(path), content, size - 1) == b""
    picture(path, "png" if form != "png" else "jpeg")
    assert picture_of(str(path), content, 10**6) == b"", "it has changed"


def test_nothing_else_is_given(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("words")
    bmp = picture(tmp_path / "x.bmp", "bmp")
    os.mkfifo(tmp_path / "pipe")
    for path in (secret, bmp):
        assert picture_of(str(path), sha256_file(path), 10**6) == b""
    for name in ("absent", "pipe", ".", "a\0b", "secret/x"):
        assert picture_of(str(tmp_path / name), "0" * 64, 10**6) == b""


def test_hits_come_in_order_with_pictures_up_to_the_limit(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = np.zeros(DIMS.positions, np.int32)
    vectors = np.eye(DIMS.embedding, dtype=np.float32)
    paths = [picture(tmp_path / f"{number}.png", "png") for number in range(3)]
    table.put(
        [
            Item("image", str(p), 0, "d", "", v, codes, 0, sha256_file(p))
            for p, v in zip(paths, vectors, strict=False)
        ],
        [],
    )
    query = np.array([0.6, 0.0, 0.8, *[0] * (DIMS.embedding - 3)], np.float32)
    hits = PictureIndex(table).search(query, 3)
    assert [hit.key for hit in hits] == [str(paths[2]), str(paths[0]), str(paths[1])]
    assert [hit.score for hit in hits] == pytest.approx([0.8, 0.6, 0], abs=1e-6)
    assert [hit.picture for hit in hits] == [paths[0].read_bytes()] * 3
    monkeypatch.setattr(module, "MAX_FILES", 2 * paths[0].stat().st_size)
    assert [bool(hit.picture) for hit in PictureIndex(table).search(query, 3)] == [
        True,
        True,
        False,
    ]
