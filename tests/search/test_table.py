"""The table of an index: what goes in is found, replaced and taken out, whole or not at all."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError
from mmprod.evaluation.retrieval import recalls
from mmprod.search import Item, Table, create_table, is_table, open_table
from mmprod.search.verify import verify
from tools.search_toy import ABOUT, DIMS

Vectors = npt.NDArray[np.float32]


def units(count: int, seed: int = 0) -> Vectors:
    rows = np.random.default_rng(seed).standard_normal((count, DIMS.embedding))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def picture(name: str, vector: Vectors, digest: str = "d") -> Item:
    codes = np.arange(DIMS.positions, dtype=np.int32)
    return Item("image", name, 0, digest, "", vector, codes)


def caption(name: str, vector: Vectors, text: str, number: int = 1) -> Item:
    return Item("text", name, number, "d", text, vector, None)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return create_table(str(tmp_path / "index"), ABOUT)


def test_the_nearest_are_those_of_an_exact_search(table: Table) -> None:
    vectors = units(300)
    table.put([picture(f"p{i}", v) for i, v in enumerate(vectors)], [])
    for query in units(20, seed=1):
        hits = table.nearest(query, 10, "image")
        cosine = vectors @ query
        best = np.argsort(-cosine)[:10]
        assert [hit.name for hit in hits] == [f"p{i}" for i in best]
        np.testing.assert_allclose([hit.score for hit in hits], cosine[best], atol=1e-6)


def test_recall_through_the_index_is_the_evaluation_s(table: Table) -> None:
    """Captions shared by several pictures, as those of avatars are, count as right each."""
    count = 150
    pictures, captions = units(count), units(count, seed=1) + 0.8 * units(count)
    captions /= np.linalg.norm(captions, axis=1, keepdims=True)
    words = np.array([f"caption {i % 60}" for i in range(count)])
    items = [picture(f"p{i}", v) for i, v in enumerate(pictures)]
    items += [caption(f"p{i}", v, words[i]) for i, v in enumerate(captions)]
    table.put(items, [])
    right = words[:, None] == words[None, :]
    for queries, kind, expected in (
        (captions, "image", recalls(captions, pictures, right)),
        (pictures, "text", recalls(pictures, captions, right)),
    ):
        found = [table.nearest(query, 10, kind) for query in queries]
        ranks = [
            next((r for r, hit in enumerate(hits) if words[int(hit.name[1:])] == word), count)
            for hits, word in zip(found, words, strict=True)
        ]
        shares = {f"R@{depth}": np.mean([rank < depth for rank in ranks]) for depth in (1, 5, 10)}
        assert shares == pytest.approx(expected, abs=1e-12)


def test_what_is_replaced_goes_with_all_its_captions(table: Table) -> None:
    a, b, c = units(3)
    table.put([picture("x", a), caption("x", a, "one"), caption("x", b, "two", 2)], [])
    table.put([picture("y", c), caption("y", c, "other")], [])
    table.put([picture("x", b, "new"), caption("x", b, "three")], ["x"])
    assert table.digests() == {"x": "new", "y": "d"}
    assert {hit.text for hit in table.nearest(a, 9, "text")} == {"three", "other"}
    assert verify(table) == {"pictures": 2, "captions": 2}


def test_names_with_quotes_are_names(table: Table) -> None:
    name = 'it\'s "100 %"; DROP TABLE items -- \u732b/_.png'
    table.put([picture(name, units(1)[0]), picture("other", units(1)[0])], [])
    table.put([picture(name, units(1)[0], "new")], [name])
    assert table.digests() == {name: "new", "other": "d"}
    assert list(table.codes([name])) == [name]
    table.drop([name])
    assert table.digests() == {"other": "d"}


def test_an_open_reader_sees_what_another_writes_whole(table: Table) -> None:
    reader, stop, seen = open_table(table.place), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            seen.append(len(reader.digests()))

    thread = threading.Thread(target=read)
    thread.start()
    for step in range(10):
        table.put([picture(f"{step}-{i}", v) for i, v in enumerate(units(50))], [])
    table.tidy()
    stop.set()
    thread.join()
    seen.append(len(reader.digests()))
    assert seen[-1] == 500
    assert all(count % 50 == 0 for count in seen)
    assert seen == sorted(seen)


def test_partitions_find_what_an_exact_search_finds_and_what_came_later(table: Table) -> None:
    table.put([picture(f"p{i}", v) for i, v in enumerate(units(600))], [])
    assert not table.partitioned
    table.partition()
    assert table.partitioned
    late = units(1, seed=9)[0]
    table.put([picture("late", late)], [])
    assert table.nearest(late, 1, "image")[0].name == "late"
    query = units(1, seed=5)[0]
    both = [table.nearest(query, 5, "image", exact=exact) for exact in (True, False)]
    assert both[0] == both[1]


def test_places_that_are_no_index_are_refused(tmp_path: Path, table: Table) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("x")
    for place in (other, other / "file", tmp_path / "absent"):
        assert not is_table(str(place))
        with pytest.raises(ConfigError, match="is no index"):
            open_table(str(place))
    for place in (other, other / "file"):
        with pytest.raises(ConfigError, match="exists and is no index"):
            create_table(str(place), ABOUT)
    with pytest.raises(ConfigError, match="is an index already"):
        create_table(table.place, ABOUT)
    assert sorted(path.name for path in other.iterdir()) == ["file"]


def test_a_creation_that_was_killed_is_made_good(tmp_path: Path) -> None:
    place = tmp_path / "index"
    (place / "items.lance/_versions").mkdir(parents=True)
    assert not is_table(str(place))
    create_table(str(place), ABOUT)
    assert open_table(str(place)).digests() == {}
    assert open_table(str(place)).nearest(units(1)[0], 5, "image") == []


@pytest.mark.parametrize("place", ["nowhere://bucket/name", "db://service", "http://host/x"])
def test_only_object_stores_are_addresses(place: str) -> None:
    with pytest.raises(ConfigError, match="no address") as caught:
        is_table(place)
    assert "s3://" in caught.value.hint


def test_damage_is_found(table: Table) -> None:
    table.put([picture(f"p{i}", v) for i, v in enumerate(units(200))], [])
    files = sorted(Path(table.place).rglob("*.lance"))
    data = max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 3] ^= 0x40
    data.write_bytes(content)
    with pytest.raises(IntegrityError, match="index"):
        verify(open_table(table.place))


def test_a_missing_file_is_an_integrity_error(table: Table) -> None:
    table.put([picture("p", units(1)[0])], [])
    for path in (Path(table.place) / "items.lance" / "data").iterdir():
        path.unlink()
    with pytest.raises(IntegrityError, match="cannot be read"):
        open_table(table.place).digests()


@pytest.mark.parametrize(
    ("items", "what"),
    [
        ([picture("x", units(1)[0]), picture("x", units(1)[0])], "twice"),
        ([caption("x", units(1)[0], "alone")], "lacks a part"),
        ([picture("x", 2 * units(1)[0])], "not of length 1"),
        ([replace(picture("x", units(1)[0]), codes=np.zeros(3, np.int32))], "has 3 codes"),
        ([replace(picture("x", units(1)[0]), kind="text")], "no kind"),
    ],
)
def test_what_no_writer_writes_is_found(table: Table, items: list[Item], what: str) -> None:
    table.put(items, [])
    with pytest.raises(IntegrityError, match=what):
        verify(table)


def test_errors_of_a_remote_store_are_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmprod.search import table as module

    def refuse(place: str) -> None:
        raise RuntimeError("connection refused\nstack")

    monkeypatch.setattr(module, "_connect", refuse)
    with pytest.raises(EnvironmentMissing, match="connection refused"):
        is_table("s3://bucket/name")
