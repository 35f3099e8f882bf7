"""`mmprod train --nproc N`: torchrun, started on the same command, with the ranks' own exit code.

torchrun itself ends with 1 whatever a rank said, and prints a traceback of its own, but a
scheduler needs to see 75 (saved, start me again). So torchrun runs inside this process. Of ranks
that fail it knows the code; when it is told to stop itself it does not, so each rank leaves its
code in a folder named by the environment.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

EXIT_FOLDER = "MMPROD_EXIT_FOLDER"
FORWARDED = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""Signals that torchrun passes on to the ranks."""


def is_rank() -> bool:
    """Whether a launcher (torchrun, deepspeed) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def record_exit(code: int) -> None:
    """Leave this rank's exit code for the launcher, if `launch` started it."""
    folder = os.environ.get(EXIT_FOLDER)
    if folder:
        name = f"rank-{os.environ.get('RANK', '0')}"
        Path(folder, name).write_text(str(code), encoding="utf-8")


def launch(nproc: int, arguments: Sequence[str]) -> int:
    """Run `mmprod *arguments` as `nproc` ranks on this machine; returns the code to exit with."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    with tempfile.TemporaryDirectory(prefix="mmprod-") as folder:
        os.environ[EXIT_FOLDER] = folder
        os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", FORWARDED)
        threads = max(1, (os.cpu_count() or 1) // nproc)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        ranks = ["--standalone", f"--nproc-per-node={nproc}", "-m", "mmprod"]
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
        try:
            run(get_args_parser().parse_args([*ranks, *arguments]))  # type: ignore[no-untyped-call]
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:
                name = signal.Signals(-failure.exitcode).name
                logger.error("rank %d was ended by %s; was there enough memory?", rank, name)
            return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        except SignalException as error:
            said = {path.read_text(encoding="utf-8") for path in Path(folder).iterdir()}
            return int(said.pop()) if len(said) == 1 else 128 + int(error.sigval)
    return 0
