"""The table of an index: what goes in is found, replaced and taken out, whole or not at all."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError
from mmprod.evaluation.retrieval import recalls
from mmprod.search import Item, Table, create_table, is_table, open_table
from mmprod.search.measure import compare_partitions
from mmprod.search.verify import verify
from tools.search_toy import ABOUT, DIMS

Vectors = npt.NDArray[np.float32]


def units(count: int, seed: int = 0) -> Vectors:
    rows = np.random.default_rng(seed).standard_normal((count, DIMS.embedding))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def picture(name: str, vector: Vectors, digest: str = "d", captions: int = 0) -> Item:
    codes = np.arange(DIMS.positions, dtype=np.int32)
    return Item("image", name, 0, digest, "", vector, codes, captions)


def caption(
    name: str, vector: Vectors, text: str, number: int = 1, digest: str = "d", of: int = 1
) -> Item:
    return Item("text", name, number, digest, text, vector, None, of)


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
    both = [caption("x", a, "one", of=2), caption("x", b, "two", 2, of=2)]
    table.put([picture("x", a, captions=2), *both], [])
    table.put([picture("y", c, captions=1), caption("y", c, "other")], [])
    table.put([picture("x", b, "new", 1), caption("x", b, "three", digest="new")], ["x"])
    assert table.digests() == {"x": "new", "y": "d"}
    assert {hit.text for hit in table.nearest(a, 9, "text")} == {"three", "other"}
    assert verify(table) == {"pictures": 2, "captions": 2}


def test_long_vectors_are_added_and_replaced(tmp_path: Path) -> None:
    """From ten numbers on LanceDB looks at them itself."""
    about = replace(ABOUT, embedding=128)
    long = create_table(str(tmp_path / "long"), about)
    a, b = np.eye(128, dtype=np.float32)[:2]
    for digest, replaced in (("d", []), ("new", ["x"])):
        items = [picture("x", a, digest, 1), caption("x", b, "words", digest=digest)]
        long.put(items, replaced)
        assert verify(long) == {"pictures": 1, "captions": 1}
        assert long.nearest(a, 1, "image")[0].score == pytest.approx(1)
        assert long.nearest(b, 1, "text")[0].score == pytest.approx(1)


def test_names_with_quotes_are_names(table: Table) -> None:
    name = 'it\'s "100 %"; DROP TABLE items -- \u732b/_.png'
    table.put([picture(name, units(1)[0]), picture("other", units(1)[0])], [])
    table.put([picture(name, units(1)[0], "new")], [name])
    assert table.digests() == {name: "new", "other": "d"}
    assert list(table.codes([name])) == [name]
    table.drop([name])
    assert table.digests() == {"other": "d"}


def test_an_open_reader_sees_what_another_writes_whole(table: Table) -> None:
    """Steps of sizes of which no number of reads could make another."""
    sizes = [7, 50, 3, 64, 11, 29]
    reader, stop, seen = open_table(table.place), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            seen.append(len(reader.digests()))
            verify(reader)

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for step, size in enumerate(sizes):
            made = []
            for i, vector in enumerate(units(size)):
                name = f"{step}-{i}"
                made += [picture(name, vector, captions=1), caption(name, vector, "text")]
            table.put(made, [])
        table.tidy()
        stop.set()
        reading.result()
    seen.append(len(reader.digests()))
    assert seen[-1] == sum(sizes)
    assert {*seen} <= {0, *np.cumsum(sizes)}
    assert seen == sorted(seen)


def test_a_read_is_of_one_version(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is counted first, for by then another may have written."""
    table.put([picture(f"p{i}", v) for i, v in enumerate(units(50))], [])
    real, other = table._table, open_table(table.place)

    class Late:
        """The table, beside which another process writes whenever its rows are counted."""

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

        def count_rows(self, *given: object) -> int:
            counted = int(real.count_rows(*given))
            late = units(7, seed=3)
            other.put([picture(f"q{i}{counted}", v) for i, v in enumerate(late)], [])
            return counted

    monkeypatch.setattr(table, "_table", Late())
    assert len(table.digests()) == len(list(table.items())) == 50


def gapped(count: int, seed: int) -> tuple[Vectors, Vectors]:
    """Pictures and texts (B, E) that match in pairs, the kinds far from each other, as the towers
    of a trained model give them.
    """
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((count, DIMS.embedding))
    kinds = []
    for sign in (1, -1):
        rows = base + 0.3 * rng.standard_normal(base.shape)
        rows[:, 0] = 4 * sign
        kinds.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    pictures, texts = kinds
    return pictures, texts


def test_partitions_lose_little_between_kinds_that_lie_apart(table: Table) -> None:
    count = 10_000
    pictures, texts = gapped(count, 0)
    assert (pictures[:500] @ texts[:500].T).max() < np.median(pictures[:500] @ pictures[:500].T)
    items = [picture(f"p{i}", v, captions=1) for i, v in enumerate(pictures)]
    items += [caption(f"p{i}", v, f"text {i}") for i, v in enumerate(texts)]
    table.put(items, [])
    assert not table.partitioned("image") and not table.partitioned("text")
    assert table.partition() == {"image": 100, "text": 100}
    assert table.partitioned("image") and table.partitioned("text")
    found = {(c.by, c.want): c for c in compare_partitions(table, 40)}
    assert len(found) == 4
    assert all(c.queries == 40 and c.recall >= 0.95 for c in found.values()), found
    replaced = [picture("p0", texts[5], "new", 1), caption("p0", pictures[5], "new", digest="new")]
    table.put(replaced, ["p0"])
    table.put([picture("late", texts[6])], [])
    assert table.nearest(texts[5], 1, "image")[0].name == "p0"
    assert table.nearest(texts[6], 1, "image")[0].name == "late"
    assert [hit.text for hit in table.nearest(pictures[5], 1, "text")] == ["new"]
    table.tidy()
    assert table.nearest(texts[6], 1, "image")[0].name == "late"
    table.drop([f"p{i}" for i in range(1000)])
    assert table.partition() == {"image": 0, "text": 0}, "so few are looked at as they are"
    assert not table.partitioned("image")


def test_what_partitions_lose_is_seen(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items that all look alike, looked for in one of many partitions."""
    monkeypatch.setattr("mmprod.search.table.PROBES", 1)
    table.put([picture(f"p{i}", v) for i, v in enumerate(units(2000))], [])
    assert table.partition() == {"image": round(2000**0.5), "text": 0}
    (only,) = compare_partitions(table, 50)
    vectors = {name: vector for name, _, vector in table.sample("image", 50)}
    shares = []
    for name, vector in vectors.items():
        both = [
            {hit.name for hit in table.nearest(vector, 11, "image", exact=exact)} - {name}
            for exact in (True, False)
        ]
        shares.append(len(both[0] & both[1]) / 10)
    assert (only.by, only.want, only.queries) == ("image", "image", 50)
    assert only.recall == pytest.approx(np.mean(shares), abs=0.03)
    assert only.recall < 1


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


def test_a_damaged_manifest_is_an_integrity_error(table: Table) -> None:
    """Some of it makes LanceDB's Rust panic."""
    table.put([picture("p", units(1)[0])], [])
    newest = min((Path(table.place) / "items.lance/_versions").glob("*.manifest"))
    whole = newest.read_bytes()
    assert b"string" in whole
    newest.write_bytes(whole.replace(b"string", b"strifg"))
    with pytest.raises(IntegrityError, match="cannot be read") as caught:
        open_table(table.place)
    assert "remove" not in caught.value.hint
    for place in range(0, len(whole), 23):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        newest.write_bytes(damaged)
        with contextlib.suppress(IntegrityError):
            verify(open_table(table.place))


def test_another_writer_s_conflict_is_no_damage(table: Table) -> None:
    from mmprod.search.table import _explained

    with pytest.raises(EnvironmentMissing, match="another command") as caught, _explained("x"):
        raise RuntimeError("lance error: Retryable commit conflict for version 3")
    assert caught.value.hint == "run it again"


@pytest.mark.parametrize(
    ("items", "what"),
    [
        ([picture("x", units(1)[0]), picture("x", units(1)[0])], "twice"),
        ([caption("x", units(1)[0], "alone")], "lacks a part"),
        ([picture("x", units(1)[0], captions=1)], "lacks a part"),
        (
            [picture("x", units(1)[0], captions=2), caption("x", units(1)[0], "one", of=2)],
            "lacks a part",
        ),
        (
            [picture("x", units(1)[0], captions=1), caption("x", units(1)[0], "a", digest="old")],
            "two states",
        ),
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
