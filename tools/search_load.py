"""An index of many items, `python -m tools.search_load [--count 200000]`: time, memory, recall.

Makes items of the sizes of preset `tiny` (128 numbers, 64 codes), half pictures and half captions.
Their vectors are made as towers make them: pairs share a place in one of 2,000 loose clusters, and
the kinds lie apart, along one direction (`paired`; the cosines are printed first). Prints JSON
lines: seconds and items a second to write them in steps of 512, bytes, time of a search of
everything and of partitions in all four directions, recall of the first ten of both against NumPy,
and the time to replace a step, delete, read all names and verify. Times depend on what else the
machine does: the load average is printed too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmprod.search import About, Item, Table, create_table
from mmprod.search.items import Kind
from mmprod.search.table import PROBES
from mmprod.search.verify import verify

WIDTH, PLACES, STEP, QUERIES, K, CLUSTERS = 128, 64, 512, 200, 10, 2000
APART: dict[Kind, float] = {"image": 0.4, "text": -0.4}
"""places of the kinds along one direction, as a share of a vector's length before it is made 1"""
Kinds = dict[Kind, npt.NDArray[np.float32]]


def paired(count: int, seed: int) -> Kinds:
    """Unit vectors (B, E) of pictures and their captions, by kind."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((CLUSTERS, WIDTH), np.float32)
    base = centres[rng.integers(0, CLUSTERS, count)]
    base += 0.5 * rng.standard_normal((count, WIDTH), np.float32)
    kinds: Kinds = {}
    for kind, apart in APART.items():
        rows = base + 0.4 * rng.standard_normal((count, WIDTH), np.float32)
        rows[:, 0] = apart * WIDTH**0.5
        kinds[kind] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return kinds


def cosines(kinds: Kinds) -> dict[str, float]:
    """Of pairs, of any picture with any text, of two pictures: means over the first thousand."""
    pictures, texts = (kinds[kind][:1000] for kind in APART)
    return {
        "pairs": round(float((pictures * texts).sum(1).mean()), 2),
        "across": round(float((pictures @ texts.T).mean()), 2),
        "two_pictures": round(float((pictures @ pictures.T).mean()), 2),
    }


def items(kinds: Kinds, count: int, seed: int) -> list[Item]:
    """`count` pictures, each followed by its caption."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1024, (count, PLACES), np.int32)
    found = []
    for place in range(count):
        name, digest = f"/pictures/{place:07}.png", f"{place:064x}"
        text = f"a face with hair of kind {place % 977}, clothes {place % 83}, background {place}"
        same = 1, digest
        found += [
            Item("image", name, 0, digest, "", kinds["image"][place], codes[place], *same),
            Item("text", name, 1, digest, text, kinds["text"][place], None, *same),
        ]
    return found


@contextmanager
def timed(name: str, about: dict[str, Any]) -> Iterator[None]:
    start, busy = time.perf_counter(), time.process_time()
    yield
    about[f"{name}_s"] = round(time.perf_counter() - start, 2)
    about[f"{name}_cpu_s"] = round(time.process_time() - busy, 2)


def searched(
    table: Table, kinds: Kinds, count: int, by: Kind, want: Kind, *, exact: bool
) -> dict[str, Any]:
    """Times in ms and recall of searches by vectors that are not in the index."""
    matrix = kinds[want][:count]
    table.nearest(kinds[by][count], K, want, exact=exact)
    times, hits, busy = [], 0, 0.0
    for query in kinds[by][count:]:
        start, spent = time.perf_counter(), time.process_time()
        found = {hit.name for hit in table.nearest(query, K, want, exact=exact)}
        times.append((time.perf_counter() - start) * 1000)
        busy += time.process_time() - spent
        best = np.argpartition(-(matrix @ query), K)[:K]
        hits += len(found & {f"/pictures/{place:07}.png" for place in best})
    return {
        "by": by,
        "for": want,
        "looked_at": "everything" if exact else "partitions",
        "p50_ms": round(float(np.percentile(times, 50)), 1),
        "p99_ms": round(float(np.percentile(times, 99)), 1),
        "cpu_ms": round(busy / QUERIES * 1000, 1),
        "recall_10": hits / (K * QUERIES),
    }


def say(about: dict[str, Any]) -> None:
    print(json.dumps(about | {"load": round(os.getloadavg()[0], 1)}), flush=True)


def measure(count: int, place: Path) -> None:
    kinds = paired(count // 2 + QUERIES, 0)
    say({"cosines": cosines(kinds)})
    held = items(kinds, count // 2, 0)
    table = create_table(str(place), About({"x": "0"}, "fp32", WIDTH, PLACES, "/nowhere"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    about: dict[str, Any] = {"items": len(held)}
    with timed("write", about):
        for first in range(0, len(held), STEP):
            table.put(held[first : first + STEP], [])
    about["items_per_s"] = round(len(held) / about["write_s"])
    with timed("tidy", about):
        table.tidy()
    say(about | table.counts())
    directions = list(product(APART, APART))
    for by, want in directions:
        say(searched(table, kinds, count // 2, by, want, exact=True))
    about = {}
    with timed("partition", about):
        made = table.partition()
    say({**about, "partitions": made, "looked_into": PROBES})
    for by, want in directions:
        say(searched(table, kinds, count // 2, by, want, exact=False))
    names = [item.name for item in held if item.kind == "image"]
    about = {}
    steps: dict[str, Callable[[], object]] = {
        "replace_step": lambda: table.put(held[:STEP], names[: STEP // 2]),
        "delete_1000": lambda: table.drop(names[-1000:]),
        "names": table.digests,
        "verify": lambda: verify(table),
    }
    for name, step in steps.items():
        with timed(name, about):
            step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    about["bytes_on_disk"] = sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
    say({**about, "more_memory_mb": round((peak - before) / 1e3), **table.counts()})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=200_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(asked.count, Path(folder) / "index")
    return 0


if __name__ == "__main__":
    sys.exit(main())
