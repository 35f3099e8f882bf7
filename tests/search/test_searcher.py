"""Searching: all four ways, many threads, embeddings that are none, models that do not belong."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmprod.errors import ConfigError, IntegrityError, NumericsError
from mmprod.search import About, Embedder, Item, Searcher, create_table
from mmprod.search.items import Kind
from tools.search_toy import ABOUT, DIMS, NAMES, Toy, Words, toy_embedder, write_pictures

from .conftest import Bring


def flat(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((16, 16, 3), colour, np.uint8)


@pytest.mark.parametrize("want", ["image", "text"])
@pytest.mark.parametrize("by", ["image", "text"])
def test_each_way_finds_what_has_the_colour(
    by: str, want: Kind, bring: Bring, folder: Path
) -> None:
    write_pictures(folder, [f"more/{i}.png" for i in range(30)], seed=2)
    table, _ = bring()
    told = {name: Path(name).with_suffix(".txt").read_text().strip() for name in table.digests()}
    searcher = Searcher(table, toy_embedder())
    for colour, pixels in (("red", (255, 40, 40)), ("blue", (40, 40, 255))):
        query = f"something {colour}" if by == "text" else flat(pixels)
        hits = searcher.search(query, 3, want=want)
        assert told[hits[0].name] == f"mostly {colour}"
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        if want == "text":
            assert len({hit.text for hit in hits}) == len(hits), "a shared caption comes once"
            assert len(hits) == 3


def test_more_than_there_are_gives_all(bring: Bring) -> None:
    table, _ = bring()
    searcher = Searcher(table, toy_embedder())
    assert len(searcher.search("red", 100)) == 12
    shared = {Path(name).with_suffix(".txt").read_text() for name in table.digests()}
    assert len(searcher.search("red", 100, want="text")) == len(shared)


def test_captions_that_thousands_share_hide_no_others(tmp_path: Path) -> None:
    table, embedder = create_table(str(tmp_path / "index"), ABOUT), toy_embedder()
    words = ["red"] * 10_001 + ["blue"] * 50 + ["white"]
    vectors = dict(zip(NAMES, embedder.texts(list(NAMES)), strict=True))
    table.put(
        [Item("text", f"p{i}", 1, "d", w, vectors[w], None, 1) for i, w in enumerate(words)], []
    )
    hits = Searcher(table, embedder).search("red", 3, want="text")
    assert hits[0].text == "red"
    assert {hit.text for hit in hits} == {"red", "blue", "white"}
    assert len(Searcher(table, embedder).search("red", 4, want="text")) == 3


@pytest.mark.parametrize("k", [0, -1, 10_001])
def test_a_number_of_hits_that_cannot_be_is_refused(k: int, bring: Bring) -> None:
    table, _ = bring()
    with pytest.raises(ConfigError, match="hits"):
        Searcher(table, toy_embedder()).search("red", k)


def test_threads_get_the_answers_that_one_gets(bring: Bring) -> None:
    table, _ = bring()
    searcher = Searcher(table, toy_embedder())
    queries = ["red", "green", "blue", "white"] * 8
    alone = [searcher.search(query, 4) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda query: searcher.search(query, 4), queries)) == alone


@pytest.mark.parametrize("value", [np.nan, 0.0, 2.0])
def test_an_embedding_that_is_no_unit_vector_is_refused(value: float) -> None:
    broken = Toy("embed_text", lambda ids: np.full((len(ids), 8), value, np.float32))
    embedder = Embedder({"embed_text": broken}, Words(), DIMS)
    with pytest.raises(NumericsError, match="no unit vector"):
        embedder.texts(["red"])


def test_equal_texts_are_embedded_once_and_stay_in_place() -> None:
    counted: list[int] = []
    runner = toy_embedder()._runners["embed_text"]

    def compute(ids: np.ndarray) -> np.ndarray:
        counted.append(len(ids))
        return runner({"tokens": ids})["embedding"]

    embedder = Embedder({"embed_text": Toy("embed_text", compute)}, Words(), DIMS)
    words = ["red", "blue", "red", "green", "blue"]
    vectors = embedder.texts(words)
    assert counted == [3]
    for word, vector in zip(words, vectors, strict=True):
        np.testing.assert_array_equal(vector, toy_embedder().texts([word])[0])


def test_another_model_is_refused_and_named() -> None:
    ABOUT.check_same(replace(ABOUT, source="/elsewhere"), "index")
    other = replace(ABOUT, files={"weights": "1" * 64}, source="/other")
    with pytest.raises(IntegrityError, match="another model than /other: weights differ"):
        ABOUT.check_same(other, "index")
    with pytest.raises(IntegrityError, match="fp32, not in fp16") as caught:
        ABOUT.check_same(replace(ABOUT, precision="fp16"), "index")
    assert caught.value.hint == "--precision fp32"


OTHER_FILES = ABOUT.dumps().replace('{"weights": "' + "0" * 64 + '"}', "[]")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 9}', '{"format": 1}', '{"format": 1, "new": 2}', OTHER_FILES],
)
def test_a_record_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(IntegrityError, match="index"):
        About.parse(text, "index")
    assert About.parse(ABOUT.dumps(), "index") == ABOUT
