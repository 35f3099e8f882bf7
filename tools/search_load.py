"""An index of many items, `python -m tools.search_load [--count 100000]`: time, memory, recall.

Makes items of the sizes of preset `tiny` (128 numbers, 64 codes), half pictures and half captions,
their vectors in 2,000 loose clusters as embeddings lie. Prints JSON lines: seconds and items a
second to write them in steps of 512, bytes on disk, time of a search of everything and of
partitions, recall of the first ten of both against NumPy, and the time to replace a step, delete,
read all names and verify. Times depend on what else the machine does: the load average is printed
too.
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
from pathlib import Path
from typing import Any

import numpy as np

from mmprod.search import About, Item, Table, create_table
from mmprod.search.verify import verify
from tools.search_engines import vectors

WIDTH, PLACES, STEP, QUERIES, K = 128, 64, 512, 200, 10


def items(count: int, seed: int) -> list[Item]:
    """count / 2 pictures, each followed by its caption."""
    rng = np.random.default_rng(seed)
    rows = vectors(count + QUERIES, WIDTH)[:count]
    codes = rng.integers(0, 1024, (count // 2, PLACES), np.int32)
    found = []
    for place in range(count // 2):
        name, digest = f"/pictures/{place:07}.png", f"{place:064x}"
        text = f"a face with hair of kind {place % 977}, clothes {place % 83}, background {place}"
        found += [
            Item("image", name, 0, digest, "", rows[2 * place], codes[place]),
            Item("text", name, 1, digest, text, rows[2 * place + 1], None),
        ]
    return found


@contextmanager
def timed(name: str, about: dict[str, Any]) -> Iterator[None]:
    start, busy = time.perf_counter(), time.process_time()
    yield
    about[f"{name}_s"] = round(time.perf_counter() - start, 2)
    about[f"{name}_cpu_s"] = round(time.process_time() - busy, 2)


def searched(table: Table, held: list[Item], count: int, *, exact: bool) -> dict[str, float]:
    """Times in ms and recall of searches for pictures."""
    queries = vectors(count + QUERIES, WIDTH)[count:]
    pictures = [item for item in held if item.kind == "image"]
    matrix = np.stack([item.vector for item in pictures])
    table.nearest(queries[0], K, "image", exact=exact)
    times, hits, busy = [], 0, 0.0
    for query in queries:
        start, spent = time.perf_counter(), time.process_time()
        found = {hit.name for hit in table.nearest(query, K, "image", exact=exact)}
        times.append((time.perf_counter() - start) * 1000)
        busy += time.process_time() - spent
        best = np.argpartition(-(matrix @ query), K)[:K]
        hits += len(found & {pictures[place].name for place in best})
    return {
        "p50_ms": round(float(np.percentile(times, 50)), 1),
        "p99_ms": round(float(np.percentile(times, 99)), 1),
        "cpu_ms": round(busy / QUERIES * 1000, 1),
        "recall_10": hits / (K * QUERIES),
    }


def say(about: dict[str, Any]) -> None:
    print(json.dumps(about | {"load": round(os.getloadavg()[0], 1)}), flush=True)


def measure(count: int, place: Path) -> None:
    held = items(count, 0)
    table = create_table(str(place), About({"x": "0"}, "fp32", WIDTH, PLACES, "/nowhere"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    about: dict[str, Any] = {"items": count}
    with timed("write", about):
        for first in range(0, count, STEP):
            table.put(held[first : first + STEP], [])
    about["items_per_s"] = round(count / about["write_s"])
    with timed("tidy", about):
        table.tidy()
    say(about | table.counts())
    say({"search": "everything", **searched(table, held, count, exact=True)})
    about = {}
    with timed("partition", about):
        table.partition()
    say({"search": "partitions", **about, **searched(table, held, count, exact=False)})
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
    parser.add_argument("--count", type=int, default=100_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(asked.count, Path(folder) / "index")
    return 0


if __name__ == "__main__":
    sys.exit(main())
