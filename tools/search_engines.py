"""Vector indexes that `mmprod search` could stand on, side by side: the table of ADR 30.

    python tools/search_engines.py ENGINE [--count 100000] [--width 128]

Run it with the Python of an environment that has the engine and NumPy; each engine in a process of
its own: lancedb, milvus-lite (pymilvus), qdrant-local (qdrant-client), chroma (chromadb), faiss,
usearch, hnswlib. Prints one JSON line: seconds to insert and to index, query times in ms, recall
of the first ten against exact search, bytes on disk, memory, and what kill -9 in the middle of
inserting leaves of what was acknowledged.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
BATCH, K, QUERIES = 1000, 10, 200


class Engine(Protocol):
    """What is asked of each."""

    def add(self, start: int, vectors: Vectors) -> None:
        """Vectors (B, E) as items start, start + 1, ...; durable when it returns, if it can be."""

    def build(self) -> None: ...

    def query(self, vector: Vectors) -> list[int]: ...

    def count(self) -> int: ...


class Lance:
    def __init__(self, folder: Path, width: int) -> None:
        self.pa, lancedb = importlib.import_module("pyarrow"), importlib.import_module("lancedb")
        self.schema = self.pa.schema(
            [("id", self.pa.int64()), ("vector", self.pa.list_(self.pa.float32(), width))]
        )
        db = lancedb.connect(str(folder))
        self.table = db.create_table("items", schema=self.schema, exist_ok=True)

    def add(self, start: int, vectors: Vectors) -> None:
        flat = self.pa.array(vectors.ravel())
        lists = self.pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        ids = self.pa.array(np.arange(start, start + len(vectors)))
        self.table.add(self.pa.table([ids, lists], schema=self.schema))

    def build(self) -> None:
        self.table.optimize()

    def query(self, vector: Vectors) -> list[int]:
        found = self.table.search(vector).distance_type("dot").limit(K)
        return [int(value) for value in found.to_arrow()["id"].to_pylist()]

    def count(self) -> int:
        return int(self.table.count_rows())


class LanceIvf(Lance):
    """With an index of partitions over the vectors as they are."""

    def build(self) -> None:
        self.table.optimize()
        self.table.create_index(metric="dot", index_type="IVF_FLAT")

    def query(self, vector: Vectors) -> list[int]:
        found = self.table.search(vector).distance_type("dot").nprobes(32).limit(K)
        return [int(value) for value in found.to_arrow()["id"].to_pylist()]


class LanceHnsw(Lance):
    """With one graph over scalar-quantized vectors."""

    def build(self) -> None:
        self.table.optimize()
        self.table.create_index(
            metric="dot", vector_column_name="vector", index_type="IVF_HNSW_SQ", num_partitions=1
        )


class Milvus:
    def __init__(self, folder: Path, width: int) -> None:
        client = importlib.import_module("pymilvus").MilvusClient
        self.client = client(str(folder / "milvus.db"))
        if not self.client.has_collection("items"):
            self.client.create_collection("items", dimension=width, metric_type="IP")
        self.client.load_collection("items")

    def add(self, start: int, vectors: Vectors) -> None:
        rows = [{"id": start + i, "vector": v.tolist()} for i, v in enumerate(vectors)]
        self.client.insert("items", rows)

    def build(self) -> None:
        self.client.flush("items")

    def query(self, vector: Vectors) -> list[int]:
        return [
            int(hit["id"]) for hit in self.client.search("items", [vector.tolist()], limit=K)[0]
        ]

    def count(self) -> int:
        found = self.client.query("items", filter="", output_fields=["count(*)"])
        return int(found[0]["count(*)"])


class Qdrant:
    def __init__(self, folder: Path, width: int) -> None:
        library = importlib.import_module("qdrant_client")
        self.models = library.models
        self.client = library.QdrantClient(path=str(folder))
        if not self.client.collection_exists("items"):
            about = self.models.VectorParams(size=width, distance=self.models.Distance.DOT)
            self.client.create_collection("items", vectors_config=about)

    def add(self, start: int, vectors: Vectors) -> None:
        ids = list(range(start, start + len(vectors)))
        self.client.upsert("items", self.models.Batch(ids=ids, vectors=vectors.tolist()))

    def build(self) -> None: ...

    def query(self, vector: Vectors) -> list[int]:
        found = self.client.query_points("items", query=vector.tolist(), limit=K)
        return [int(point.id) for point in found.points]

    def count(self) -> int:
        return int(self.client.count("items").count)


class Chroma:
    def __init__(self, folder: Path, width: int) -> None:
        library = importlib.import_module("chromadb")
        settings = library.Settings(anonymized_telemetry=False)
        client = library.PersistentClient(str(folder), settings=settings)
        self.items = client.get_or_create_collection("items", metadata={"hnsw:space": "ip"})

    def add(self, start: int, vectors: Vectors) -> None:
        ids = [str(i) for i in range(start, start + len(vectors))]
        self.items.upsert(ids=ids, embeddings=vectors)

    def build(self) -> None: ...

    def query(self, vector: Vectors) -> list[int]:
        return [int(i) for i in self.items.query(vector[None], n_results=K, include=[])["ids"][0]]

    def count(self) -> int:
        return int(self.items.count())


class InMemory:
    """Indexes without storage of their own: written whole when built."""

    def __init__(self, folder: Path, width: int) -> None:
        self.file, self.total = folder / "index", 0
        self.open(width)

    def open(self, width: int) -> None:
        raise NotImplementedError

    def count(self) -> int:
        return self.total


class Faiss(InMemory):
    def open(self, width: int) -> None:
        self.library = importlib.import_module("faiss")
        self.library.omp_set_num_threads(1)
        self.index = self.library.IndexHNSWFlat(width, 32, self.library.METRIC_INNER_PRODUCT)

    def add(self, start: int, vectors: Vectors) -> None:
        self.index.add(vectors)

    def build(self) -> None:
        self.library.write_index(self.index, str(self.file))

    def query(self, vector: Vectors) -> list[int]:
        self.index.hnsw.efSearch = 64
        return [int(i) for i in self.index.search(vector[None], K)[1][0]]


class Usearch(InMemory):
    def open(self, width: int) -> None:
        library = importlib.import_module("usearch.index")
        self.index = library.Index(ndim=width, metric="ip", dtype="f32")

    def add(self, start: int, vectors: Vectors) -> None:
        self.index.add(np.arange(start, start + len(vectors)), vectors, threads=1)

    def build(self) -> None:
        self.index.save(str(self.file))

    def query(self, vector: Vectors) -> list[int]:
        return [int(i) for i in self.index.search(vector, K, threads=1).keys]


class Hnswlib(InMemory):
    def open(self, width: int) -> None:
        self.index = importlib.import_module("hnswlib").Index(space="ip", dim=width)
        self.index.init_index(max_elements=2_000_000, ef_construction=100, M=16)
        self.index.set_ef(64)

    def add(self, start: int, vectors: Vectors) -> None:
        self.index.add_items(vectors, np.arange(start, start + len(vectors)), num_threads=1)

    def build(self) -> None:
        self.index.save_index(str(self.file))

    def query(self, vector: Vectors) -> list[int]:
        return [int(i) for i in self.index.knn_query(vector, K, num_threads=1)[0][0]]


ENGINES: dict[str, Callable[[Path, int], Engine]] = {
    "lancedb": Lance, "lancedb-ivf": LanceIvf, "lancedb-hnsw": LanceHnsw,
    "milvus-lite": Milvus, "qdrant-local": Qdrant, "chroma": Chroma,
    "faiss": Faiss, "usearch": Usearch, "hnswlib": Hnswlib,
}  # fmt: skip


def vectors(count: int, width: int) -> Vectors:
    """Unit vectors (count, width) in 2,000 loose clusters, as embeddings lie; always the same."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2000, width), np.float32)
    found = centres[rng.integers(0, 2000, count)]
    found += 0.7 * rng.standard_normal((count, width), np.float32)
    scaled: Vectors = found / np.linalg.norm(found, axis=1, keepdims=True)
    return scaled


def measure(name: str, count: int, width: int, folder: Path) -> dict[str, Any]:
    """All figures of one engine but the kills."""
    data = vectors(count + QUERIES, width)
    items, queries = data[:count], data[count:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engine = ENGINES[name](folder, width)
    start, spent = time.perf_counter(), time.process_time()
    for first in range(0, count, BATCH):
        engine.add(first, items[first : first + BATCH])
    inserted = time.perf_counter()
    engine.build()
    built, busy = time.perf_counter(), time.process_time() - spent
    right = np.argsort(-(queries @ items.T), axis=1)[:, :K]
    engine.query(queries[0])
    times, hits = [], 0
    for query, wanted in zip(queries, right, strict=True):
        began = time.perf_counter()
        found = engine.query(query)
        times.append((time.perf_counter() - began) * 1000)
        hits += len({*found} & {*wanted.tolist()})
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "engine": name, "count": count, "width": width,
        "insert_s": round(inserted - start, 2), "build_s": round(built - inserted, 2),
        "insert_cpu_s": round(busy, 2),
        "query_ms_p50": round(float(np.percentile(times, 50)), 2),
        "query_ms_p99": round(float(np.percentile(times, 99)), 2),
        "recall_10": round(hits / (K * QUERIES), 4), "stored_mb": round(stored / 1e6, 1),
        "memory_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3),
        "load_average": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def insert_until_killed(name: str, width: int, folder: Path) -> None:
    """Insert batches for ever and say after each how many items there are."""
    engine, data = ENGINES[name](folder, width), vectors(BATCH, width)
    start = engine.count()
    while True:
        engine.add(start, data)
        start += BATCH
        print(start, flush=True)


def kills(name: str, width: int, folder: Path, times: int = 5) -> dict[str, Any]:
    """Kill -9 in the middle of inserting, then count: items lost and items of half a batch."""
    rng, lost, torn = np.random.default_rng(1), 0, 0
    command = [sys.executable, __file__, name, "--width", str(width), "--folder", str(folder)]
    for _ in range(times):
        child = subprocess.Popen([*command, "--insert"], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(float(rng.uniform(0.2, 1.0)))
        child.send_signal(signal.SIGKILL)
        acknowledged = int((first + child.stdout.read()).split()[-1])
        child.wait()
        done = subprocess.run([*command, "--counted"], capture_output=True, text=True, check=True)
        there = int(done.stdout.split()[-1])
        lost, torn = lost + max(0, acknowledged - there), torn + there % BATCH
    return {"kills": times, "lost": lost, "torn": torn}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=128)
    for name in ("--folder", "--insert", "--counted"):
        kind: Any = {"type": Path} if name == "--folder" else {"action": "store_true"}
        parser.add_argument(name, help=argparse.SUPPRESS, **kind)
    asked = parser.parse_args()
    if asked.insert:
        insert_until_killed(asked.engine, asked.width, asked.folder)
    if asked.counted:
        print(ENGINES[asked.engine](asked.folder, asked.width).count())
        return
    with tempfile.TemporaryDirectory() as name:
        figures = measure(asked.engine, asked.count, asked.width, Path(name))
    if not issubclass(ENGINES[asked.engine], InMemory):  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as name:
            figures |= kills(asked.engine, asked.width, Path(name))
    print(json.dumps(figures), flush=True)
    os._exit(0)  # some engines leave threads behind


if __name__ == "__main__":
    main()
