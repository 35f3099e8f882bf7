"""Kill an index's writer again and again at random moments: nothing is lost, nothing doubled.

    python -m tools.search_kills [--kills 100] [--pictures 400] [--seed 0]

A writer brings a folder of small pictures into an index, which a kill -9 ends anywhere: before the
table is there, between its steps, inside one, while files are put together. Between the kills some
pictures change, go or come. After every kill the index is verified: each picture is in it once,
with all its captions, and all that the writer had announced is there. At the end it must hold
exactly what one that was never disturbed holds. Prints one JSON line; exits with 1 if anything
differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from mmprod.search import create_table, is_table, open_table
from mmprod.search import update as updating
from mmprod.search.entries import Left, Taken, folder_entries
from mmprod.search.verify import verify
from tools.search_toy import ABOUT, DIMS, toy_embedder, write_pictures

TAKEN = Taken(DIMS.image_size, ("en",))
FORKS = get_context("forkserver")
# Importing takes far longer than writing, so the writers are forks of a process that has imported
# all of it and opened nothing; of forks as such LanceDB warns.
FORKS.set_forkserver_preload(["tools.search_toy", "mmprod.search.entries", "mmprod.search.verify"])
sys.warnoptions.append("ignore:lancedb fork support is experimental:RuntimeWarning")
STEP = 16
"""pictures of one atomic write here: many steps, many moments to kill in"""
START_S = 120.0
LONGEST_S = 1.2
"""the latest moment of a kill after the writer has begun"""


def write(folder: Path, place: Path, say: Callable[[int], None]) -> None:
    """Bring the index up to date, and say how many pictures are dealt with; -1 at the end."""
    updating.STEP = STEP
    left: Left = []
    entries = folder_entries(folder, TAKEN, left)
    say(0)
    table = open_table(str(place)) if is_table(str(place)) else create_table(str(place), ABOUT)
    with updating.writing(str(place)):
        embedder = toy_embedder()
        updating.update(table, embedder, entries, on_event=lambda event: say(event.done))
        updating.prune(table, folder, entries, left)
        table.tidy()
    say(-1)


def content(place: Path) -> dict[str, int]:
    """Every item, picture or caption, by its key, and the check sum of all the rest of it."""
    if not is_table(str(place)):
        return {}
    return {item.key: check for item, check in open_table(str(place)).items()}


def killed_once(folder: Path, place: Path, after_s: float) -> bool:
    """Start a writer and kill it; whether it had finished before. Raises when what it leaves is not
    whole, or lacks what it had announced.
    """
    names = [entry.name for entry in folder_entries(folder, TAKEN, [])]
    ours, theirs = FORKS.Pipe(duplex=False)
    child = FORKS.Process(target=write, args=(folder, place, theirs.send))
    child.start()
    theirs.close()
    if not ours.poll(START_S):
        raise AssertionError(f"the writer did not begin within {START_S:.0f} s")
    said = [ours.recv()]
    time.sleep(after_s)
    child.kill()
    child.join()
    with contextlib.suppress(EOFError):
        while True:
            said.append(ours.recv())
    held = {key.rpartition("\n")[0] for key in content(place)}
    if held:
        verify(open_table(str(place)))
    lost = [name for name in names[: max(said)] if name not in held]
    if lost:
        raise AssertionError(f"{len(lost)} announced pictures are lost, the first {lost[0]}")
    return -1 in said


def change(folder: Path, rng: random.Random, turn: int) -> None:
    """Other pixels for some pictures, others gone, some new."""
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    write_pictures(folder, rng.sample(there, len(there) // 10), seed=1000 + turn)
    for name in rng.sample(there, len(there) // 20):
        (folder / name).unlink()
    new = [f"new-{turn}/{number}.png" for number in range(len(there) // 20)]
    write_pictures(folder, new, seed=turn)


def kill_often(root: Path, kills: int, pictures: int, seed: int) -> dict[str, Any]:
    """All of it below `root`."""
    rng, folder, place = random.Random(seed), root / "pictures", root / "index"
    write_pictures(folder, [f"{number % 7}/{number:05}.png" for number in range(pictures)])
    done = interrupted = 0
    while interrupted < kills:
        if killed_once(folder, place, rng.uniform(0, LONGEST_S)):
            done += 1
            change(folder, rng, done)
        else:
            interrupted += 1
    for target in (place, root / "undisturbed"):
        write(folder, target, lambda done: None)
    same = content(place) == content(root / "undisturbed")
    counts = verify(open_table(str(place)))
    same = same and counts == verify(open_table(str(root / "undisturbed")))
    return {"kills": interrupted, "finished_between": done, "same": same, **counts}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = kill_often(Path(name), asked.kills, asked.pictures, asked.seed)
    print(json.dumps(found))
    return 0 if found["same"] else 1


if __name__ == "__main__":
    sys.exit(main())
