"""The process in which a graph or engine runs: `python -m mmprod.parity.worker_child
PARENT MODULE ...`.

It gives away its rights, waits for a job on stdin, opens the runner and answers inputs with outputs
until stdin ends. What libraries print goes to stderr, so that stdout carries frames alone.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprod.parity.worker_confine import confine, drop_rights, end_with_parent

if TYPE_CHECKING:
    from mmprod.graphs.runner import Runner
    from mmprod.parity.worker_wire import Frame, Pipes


def main() -> None:
    parent = int(sys.argv[1])
    end_with_parent(parent)
    held = confine()
    frames = os.dup(1)
    os.dup2(2, 1)
    from mmprod.parity.worker_wire import Closed, Pipes

    pipes = Pipes(0, frames)
    for name in sys.argv[2:]:
        with suppress(ImportError):  # the job itself will miss it and say so
            importlib.import_module(name)
    with suppress(Closed):
        _serve(pipes, held, parent)


def _serve(pipes: Pipes, held: list[str], parent: int) -> None:
    from mmprod.parity.worker_wire import Frame

    job = pipes.receive()
    try:
        runner, dropped = _open(job.values, parent)
    except Exception as error:  # noqa: BLE001 - whatever the foreign code raises is told
        pipes.send(_told(error))
        return
    pipes.send(Frame("ready", {"backend": runner.backend, "confined": [*held, *dropped]}))
    while True:
        asked = pipes.receive()
        try:
            answer = Frame("outputs", arrays=dict(runner(asked.arrays)))
        except Exception as error:  # noqa: BLE001 - as above
            answer = _told(error)
        pipes.send(answer)


def _open(job: dict[str, Any], parent: int) -> tuple[Runner, list[str]]:
    """The runner of a job, and the rights that were dropped before its file was opened."""
    from mmprod.errors import IntegrityError
    from mmprod.parity.worker_wire import spec_from_json

    module, _, name = job["opener"].partition(":")
    opener = getattr(importlib.import_module(module), name)
    path = Path(job["path"])
    code = [Path(sys.executable), *(Path(str(sys.modules[m].__file__)) for m in ("os", "mmprod"))]
    dropped = drop_rights([path, *code])
    end_with_parent(parent)  # what is opened may never come back
    for place, wanted in job["sha256"].items():
        if _sha256(Path(place)) != wanted:
            raise IntegrityError(
                f"{place} changed while it was being opened", hint="mmprod bundle verify BUNDLE"
            )
    return opener(spec_from_json(job["spec"]), path, *job["rest"]), dropped


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _told(error: Exception) -> Frame:
    """An error as a frame; a bug with its traceback."""
    from mmprod.errors import MmprodError
    from mmprod.parity.worker_wire import Frame

    values = {"type": type(error).__name__, "message": str(error)[:2000], "hint": "", "trace": ""}
    if isinstance(error, MmprodError):
        values["hint"] = error.hint
    else:
        values["trace"] = "".join(traceback.format_exception(error))[-8000:]
    return Frame("error", values)


if __name__ == "__main__":
    main()
