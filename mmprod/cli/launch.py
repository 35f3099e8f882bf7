"""`mmprod train --nproc N --nnodes M`: torchrun, started on the same command, with the ranks' own
exit code; and what any launcher left in the environment.

torchrun itself ends with 1 whatever a rank said, and prints a traceback of its own, but a
scheduler needs to see 75 (saved, start me again). So torchrun runs inside this process. Of ranks
that fail it knows the code; when it is told to stop itself it does not, so each rank leaves its
code in a folder named by the environment.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprod.errors import ConfigError, EnvironmentMissing
from mmprod.log import configure_logging
from mmprod.training.environment import (
    EXIT_FOLDER,
    TIMEOUT,
    TIMEOUT_S,
    Place,
    adopt,
    record_exit,
)

__all__ = [
    "EXIT_FOLDER", "TIMEOUT", "TIMEOUT_S", "Start", "adopted", "is_rank", "launch", "record_exit",
]  # fmt: skip

logger = logging.getLogger(__name__)

FORWARDED = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""Signals that torchrun passes on to the ranks."""
SAVING_S = 600
"""Longest wait, after a forwarded signal, for ranks that save; then they are killed."""
ID = "mmprod"


@dataclass(frozen=True)
class Start:
    """How many ranks to start here, of which job. `nproc` on each of `nnodes` nodes.

    Several nodes meet at `master` (ADDR:PORT of node 0; static: this one is `node_rank`) or at
    `rdzv` (ADDR:PORT of any one of them; c10d: ranks are dealt out when all have come).
    """

    nproc: int = 1
    nnodes: int = 1
    node_rank: int | None = None
    master: str = ""
    rdzv: str = ""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def wanted(self) -> bool:
        """Whether ranks are to be started at all."""
        return self.size > 1

    @property
    def size(self) -> int:
        """Ranks of the whole job."""
        return self.nproc * self.nnodes


def _check(start: Start) -> None:
    """Raises ConfigError where nodes could not find each other."""
    several = {
        "--node-rank": start.node_rank is not None,
        "--master": start.master,
        "--rdzv": start.rdzv,
    }
    given = [name for name, there in several.items() if there]
    if start.nnodes == 1:
        if given:
            raise ConfigError(f"{given[0]} is for several nodes", hint="add --nnodes M")
        return
    if bool(start.master) == bool(start.rdzv):
        raise ConfigError(
            f"--nnodes {start.nnodes} needs --master ADDR:PORT or --rdzv ADDR:PORT, one of them",
            hint="--node-rank I --master NODE0:29500 on each node, or --rdzv NODE0:29500 on all",
        )
    if start.master and start.node_rank is None:
        raise ConfigError(
            "--master needs --node-rank", hint="0 on the node of --master, then 1 ..."
        )
    if start.rdzv and start.node_rank is not None:
        raise ConfigError("--rdzv deals out ranks itself", hint="leave --node-rank out")
    if start.node_rank is not None and start.node_rank >= start.nnodes:
        raise ConfigError(
            f"--node-rank {start.node_rank} of {start.nnodes} nodes",
            hint=f"nodes count from 0 to {start.nnodes - 1}",
        )
    _endpoint("--master" if start.master else "--rdzv", start.master or start.rdzv)


def _endpoint(option: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{option} {text!r} is not ADDR:PORT", hint=f"e.g. {option} node0:29500")
    return host.strip("[]"), int(port)


def adopted(verbosity: int) -> Place:
    """This process's place among the ranks of whichever launcher started it. From now on logs know
    it too: all but rank 0 say only warnings, with their rank and host.

    Raises ConfigError for an environment that is half set.
    """
    place = adopt()
    configure_logging(verbosity)
    return place


def is_rank() -> bool:
    """Whether this process is one of several (see `adopted`)."""
    size = os.environ.get("WORLD_SIZE", "")
    return size.isdigit() and int(size) > 1


def launch(start: Start, arguments: Sequence[str]) -> int:
    """Run `mmprod *arguments` as the ranks of this node; returns the code to exit with.

    Raises EnvironmentMissing when the nodes do not meet.
    """
    if is_rank():
        raise ConfigError(
            "--nproc and --nnodes start ranks, and a launcher has started this process as a rank",
            hint="leave them out, or unset WORLD_SIZE and RANK",
        )
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import get_args_parser, run

    with tempfile.TemporaryDirectory(prefix="mmprod-") as folder:
        os.environ[EXIT_FOLDER] = folder
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVING_S))
        threads = max(1, (os.cpu_count() or 1) // start.nproc)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        ranks = [*_torchrun(start), "--signals-to-handle", FORWARDED, "-m", "mmprod"]
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
        try:
            run(get_args_parser().parse_args([*ranks, *arguments]))  # type: ignore[no-untyped-call]
        except ChildFailedError as error:
            return _code_of(error.failures)
        except SignalException as error:
            said = {path.read_text(encoding="utf-8") for path in Path(folder).iterdir()}
            return int(said.pop()) if len(said) == 1 else 128 + int(error.sigval)
        except (RendezvousError, RuntimeError) as error:
            raise _apart(start, error) from error
    return 0


def _code_of(failures: Mapping[int, Any]) -> int:
    """The cause among the ranks that failed here: one that was killed, else the first.

    Those that left because another had died end too soon after it to tell by the time.
    """
    rank, failure = min(failures.items(), key=lambda one: (one[1].exitcode > 0, one[1].timestamp))
    if failure.exitcode > 0:
        return int(failure.exitcode)
    logger.error(
        "rank %d on %s was ended by %s; was there enough memory?",
        rank,
        socket.gethostname(),
        signal.Signals(-failure.exitcode).name,
    )
    return 128 - int(failure.exitcode)


def _torchrun(start: Start) -> list[str]:
    """torchrun's own options. Of the nodes it is told which one serves and what to call this one:
    its guesses go by host names, which often resolve to loopback.
    """
    count = [f"--nnodes={start.nnodes}", f"--nproc-per-node={start.nproc}"]
    if start.nnodes == 1:
        return ["--standalone", f"--nproc-per-node={start.nproc}"]
    seconds = os.environ.get(TIMEOUT) or TIMEOUT_S
    if start.master:
        host, port = _endpoint("--master", start.master)
        where = [f"--node-rank={start.node_rank}", f"--master-addr={host}", f"--master-port={port}"]
        return [*count, *where, f"--rdzv-id={ID}", f"--rdzv-conf=timeout={seconds}"]
    from mmprod.training.network import is_loopback, is_own, own_address

    host, port = _endpoint("--rdzv", start.rdzv)
    conf = f"is_host={int(is_own(host))},join_timeout={seconds},read_timeout={seconds}"
    options = [*count, "--rdzv-backend=c10d", f"--rdzv-endpoint={start.rdzv}", f"--rdzv-id={ID}"]
    own = own_address(host)
    if own and not is_loopback(own):
        options.append(f"--local-addr={own}")
    return [*options, f"--rdzv-conf={conf}"]


def _apart(start: Start, error: Exception) -> EnvironmentMissing:
    where = start.master or start.rdzv or "this machine"
    seconds = os.environ.get(TIMEOUT) or TIMEOUT_S
    reason = str(error).partition("\n")[0]
    return EnvironmentMissing(
        f"the {start.nnodes} nodes did not meet at {where} within {seconds} s: {reason}",
        hint="does the command run on every node, with the same port, and does the address lead to "
        "one of them? --rendezvous-timeout waits longer",
    )
