"""One writer at a time."""

from __future__ import annotations

import errno
import fcntl
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmprod.bundle import Bundle, Place, lock, open_bundle
from mmprod.errors import EnvironmentMissing, IntegrityError

HOLD = """
import sys, time
from pathlib import Path
from mmprod.bundle.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_writer(root: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_writer_waits_and_is_then_refused(
    signed: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (signed.root / "bundle.json").read_bytes()
    monkeypatch.setattr(lock, "WAIT_S", 0.2)
    with another_writer(signed.root) as process:
        signed.name = "changed"
        with pytest.raises(EnvironmentMissing, match="another process"):
            signed.save()
        assert (signed.root / "bundle.json").read_bytes() == before
        process.kill()  # a killed writer leaves no lock behind
        process.wait()
        signed.save()
    assert open_bundle(signed.root).name == "changed"


def test_of_many_handles_exactly_one_wins(signed: Bundle) -> None:
    handles = [open_bundle(signed.root) for _ in range(8)]
    start, refused = threading.Barrier(8), []

    def write(number: int) -> None:
        handles[number].name = f"writer {number}"
        start.wait()
        try:
            handles[number].save()
        except IntegrityError:
            refused.append(number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    (winner,) = set(range(8)) - set(refused)
    assert open_bundle(signed.root).name == f"writer {winner}"


def test_writing_guards_all_that_is_inside(signed: Bundle) -> None:
    late = open_bundle(signed.root)
    with signed.writing():
        path = signed.root / "reports" / "more.json"
        path.write_text("{}")
        signed.add(path, role="report")
        signed.save()
    assert {a.path for a in open_bundle(signed.root).artefacts("report")} >= {"reports/more.json"}
    with pytest.raises(IntegrityError, match="another process"), late.writing():
        pytest.fail("it must not come to this")


def test_a_bundle_that_is_written_to_is_not_replaced(
    signed: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "WAIT_S", 0.2)
    place = Place(signed.root, replace=True)
    with (
        another_writer(signed.root),
        pytest.raises(EnvironmentMissing, match="another process"),
        place.staged(),
    ):
        pass
    open_bundle(signed.root).verify()


def test_nothing_is_saved_over_a_bundle_that_came_meanwhile(signed: Bundle, tmp_path: Path) -> None:
    other = open_bundle(shutil.copytree(signed.root, tmp_path / "other"))
    other.name = "other"
    other.save()
    with pytest.raises(IntegrityError, match="another process"), signed.writing():
        signed.root.rename(tmp_path / "old")
        other.root.rename(signed.root)
        signed.save()
    assert open_bundle(signed.root).name == "other"


def test_without_locks_a_warning_says_so(
    signed: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    signed.save()
    assert "knows no locks" in caplog.text
