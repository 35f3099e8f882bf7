"""Who started this process, as one of how many: read from the environment, torch-free.

    torchrun     TORCHELASTIC_RUN_ID beside RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT
    deepspeed    CROSS_RANK beside the same
    openmpi      OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE
    slurm        SLURM_STEP_NUM_TASKS (set by srun alone) beside SLURM_PROCID, SLURM_LOCALID
    pmi          PMI_RANK, PMI_SIZE (MPICH, Intel MPI)
    environment  RANK and WORLD_SIZE from anybody else: Kubernetes operators, by hand
    alone        none of these
The first that applies counts: launchers are nested (srun starts torchrun, sbatch runs mpirun), and
the inner one knows. Only RANK of unknown origin may not contradict a launcher. An environment
that is set by half is refused with what is missing: guessing would end in a job that waits for
ranks nobody started.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mmprod.errors import ConfigError

LOOPBACK = "127.0.0.1"
FIRST_PORT, PORTS = 20000, 10000
"""Rendezvous ports that are derived from a job's number: below the range systems hand out."""

EXIT_FOLDER = "MMPROD_EXIT_FOLDER"
"""Where ranks that `mmprod train --nproc` started leave their exit codes."""

TIMEOUT = "MMPROD_RENDEZVOUS_TIMEOUT"
TIMEOUT_S = 300
"""Seconds until a rendezvous that does not come about is given up."""

Variables = Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """One process among `size`; rank in [0, size), local_rank among those of its node.

    `nodes`: how many, or None where the launcher does not say. `address`, `port`: where rank 0 (or
    its launcher) waits for the others; port 0 for a process alone.
    """

    launcher: str
    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int | None = 1
    nodes: int | None = 1
    address: str = LOOPBACK
    port: int = 0

    def variables(self) -> dict[str, str]:
        """The names that torch and DeepSpeed look for."""
        values: dict[str, object] = {
            "RANK": self.rank,
            "LOCAL_RANK": self.local_rank,
            "WORLD_SIZE": self.size,
            "MASTER_ADDR": self.address,
        }
        if self.port:
            values["MASTER_PORT"] = self.port
        if self.local_size is not None:
            values["LOCAL_SIZE"] = self.local_size
        return {name: str(value) for name, value in values.items()}


def find_place(variables: Variables | None = None) -> Place:
    """This process's place. Raises ConfigError for an environment that is half set, contradicts
    itself, or asks for ranks that were not started.
    """
    have = {k: v for k, v in (os.environ if variables is None else variables).items() if v}
    found = _launched(have)
    _check(found)
    return found if found.size > 1 else replace(found, port=_number(have, "MASTER_PORT", 0))


def adopt() -> Place:
    """This process's place, from now on also in the variables that torch and DeepSpeed look for.

    A process alone keeps its environment. Raises ConfigError.
    """
    place = find_place()
    if place.launcher != "alone":
        for name, value in place.variables().items():
            os.environ.setdefault(name, value)
    return place


def record_exit(code: int) -> None:
    """Leave this rank's exit code for the launcher that asks for it."""
    folder = os.environ.get(EXIT_FOLDER)
    if folder:
        name = f"rank-{os.environ.get('RANK', '0')}"
        Path(folder, name).write_text(str(code), encoding="utf-8")


def _launched(have: Variables) -> Place:
    if "TORCHELASTIC_RUN_ID" in have:
        return _standard("torchrun", have)
    if "CROSS_RANK" in have:
        return _standard("deepspeed", have)
    for applies, read in READERS:
        if applies in have:
            place = read(have)
            _agrees(place, have)
            return place
    if "RANK" in have or "WORLD_SIZE" in have:
        return _standard("environment", have)
    if _number(have, "SLURM_NTASKS", 1) > 1 and "SLURM_JOB_ID" in have:
        raise ConfigError(
            f"Slurm gives this job {have['SLURM_NTASKS']} tasks, but this process is none of them: "
            "it was started without srun",
            hint="write srun before the command, or ask for one task (--ntasks-per-node=1) and "
            "use --nproc",
        )
    return Place("alone")


def _standard(launcher: str, have: Variables) -> Place:
    """RANK, WORLD_SIZE and their companions."""
    size, rank = _number(have, "WORLD_SIZE", None), _number(have, "RANK", None)
    if size == 1:
        address, port = have.get("MASTER_ADDR", LOOPBACK), _number(have, "MASTER_PORT", 0)
        return Place(launcher, rank, _number(have, "LOCAL_RANK", 0), address=address, port=port)
    nodes = None
    local_size = _number(have, "LOCAL_WORLD_SIZE", _number(have, "LOCAL_SIZE", 0)) or None
    if launcher == "torchrun":
        nodes = _number(have, "GROUP_WORLD_SIZE", 0) or None
    if launcher == "deepspeed":
        nodes = _number(have, "CROSS_SIZE", 0) or None
    address, port = _master(have, launcher)
    local = _number(have, "LOCAL_RANK", rank)
    return Place(launcher, rank, local, size, local_size, nodes, address, port)


def _openmpi(have: Variables) -> Place:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    rank, size, local, local_size = (_number(have, f"OMPI_COMM_WORLD_{n}", None) for n in names)
    return _mpi("openmpi", have, (rank, size, local, local_size))


def _pmi(have: Variables) -> Place:
    rank, size = _number(have, "PMI_RANK", None), _number(have, "PMI_SIZE", None)
    local = _number(have, "MPI_LOCALRANKID", _number(have, "PMI_LOCAL_RANK", rank))
    local_size = _number(have, "MPI_LOCALNRANKS", _number(have, "PMI_LOCAL_SIZE", 0))
    return _mpi("pmi", have, (rank, size, local, local_size))


def _mpi(launcher: str, have: Variables, numbers: tuple[int, int, int, int]) -> Place:
    """MPI says who is who but not where rank 0 is. On one node that is here."""
    rank, size, local, local_size = numbers
    if "MASTER_ADDR" not in have and local_size != size:
        raise ConfigError(
            f"{launcher} started {size} ranks on several nodes, and MASTER_ADDR does not say where "
            "rank 0 is",
            hint="mpirun -x MASTER_ADDR=NODE0 -x MASTER_PORT=29500 ..., NODE0 as all nodes know it",
        )
    nodes = 1 if local_size == size else None
    address = have.get("MASTER_ADDR", LOOPBACK)
    # All ranks of a node have one parent, mpirun or its daemon.
    port = _number(have, "MASTER_PORT", _port(f"{launcher} {os.getppid()}"))
    return Place(launcher, rank, local, size, local_size or None, nodes, address, port)


def _slurm(have: Variables) -> Place:
    """A task of srun. Task 0 runs on the first node of the step's list."""
    size, rank = _number(have, "SLURM_STEP_NUM_TASKS", None), _number(have, "SLURM_PROCID", None)
    local = _number(have, "SLURM_LOCALID", None)
    nodes = _number(have, "SLURM_STEP_NUM_NODES", _number(have, "SLURM_NNODES", 0)) or None
    address = have.get("MASTER_ADDR", "")
    if not address and nodes == 1:
        address = LOOPBACK
    if not address:
        listed = have.get("SLURM_STEP_NODELIST") or have.get("SLURM_JOB_NODELIST", "")
        address = first_node(listed)
    job = f"{have.get('SLURM_JOB_ID', '')}.{have.get('SLURM_STEP_ID', '')}"
    port = _number(have, "MASTER_PORT", _port(job))
    local_size = size if nodes == 1 else None
    return Place("slurm", rank, local, size, local_size, nodes, address, port)


READERS: tuple[tuple[str, Callable[[Variables], Place]], ...] = (
    ("OMPI_COMM_WORLD_RANK", _openmpi),
    ("OMPI_COMM_WORLD_SIZE", _openmpi),
    ("SLURM_STEP_NUM_TASKS", _slurm),
    ("PMI_RANK", _pmi),
    ("PMI_SIZE", _pmi),
)
"""A variable that proves a launcher, and who reads the rest."""


def first_node(listed: str) -> str:
    """The first name of a compressed node list: `gpu[007-010,12],login1` -> `gpu007`,
    `rack[1-2]node[5-6]` -> `rack1node5`. Raises ConfigError.

    Parsed here: scontrol is missing in most containers.
    """
    depth, end = 0, len(listed)
    for place, letter in enumerate(listed):
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            end = place
            break
    name = re.sub(r"\[(\w+)[^\[\]]*\]", r"\1", listed[:end])
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(
            f"SLURM_STEP_NODELIST is {listed!r}, which names no node",
            hint="export MASTER_ADDR=NODE, the node of task 0, before srun",
        )
    return name


def _agrees(place: Place, have: Variables) -> None:
    """RANK and WORLD_SIZE beside another launcher's variables must say the same."""
    said = {"RANK": place.rank, "WORLD_SIZE": place.size}
    for name, ours in said.items():
        theirs = _number(have, name, ours)
        if theirs != ours:
            raise ConfigError(
                f"{name}={theirs} contradicts {place.launcher}, which says {ours}",
                hint="start with one launcher only, or unset RANK WORLD_SIZE LOCAL_RANK",
            )


def _check(place: Place) -> None:
    if place.size < 1 or place.rank >= place.size:
        raise ConfigError(
            f"rank {place.rank} of {place.size} ranks ({place.launcher}): ranks count from 0 to "
            f"{place.size - 1}",
            hint="RANK must be below WORLD_SIZE; start with torchrun or --nproc",
        )
    if place.size > 1 and not 0 < place.port < 65536:
        raise ConfigError(f"MASTER_PORT={place.port} is no port", hint="use 1024 to 65535")


def _number(have: Variables, name: str, default: int | None) -> int:
    """A whole number from 0 on. `default` None: it has to be there."""
    text = have.get(name, "")
    if text.isascii() and text.isdigit():
        return int(text)
    if text:
        raise ConfigError(f"{name}={text!r} is not a number", hint="start with torchrun or --nproc")
    if default is None:
        there = ", ".join(sorted(k for k in have if k in COMPANIONS or k.startswith("OMPI_COMM")))
        raise ConfigError(
            f"{name} is not set, but {there or 'others of its launcher'} is",
            hint=f"set {name} too; or start with torchrun, srun or --nproc; alone: unset them",
        )
    return default


COMPANIONS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID",
    "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "PMI_RANK", "PMI_SIZE",
)  # fmt: skip


def _master(have: Variables, launcher: str) -> tuple[str, int]:
    address = have.get("MASTER_ADDR", "")
    if not address:
        raise ConfigError(
            f"several ranks ({launcher}), but MASTER_ADDR does not say where rank 0 is",
            hint="set MASTER_ADDR and MASTER_PORT to rank 0's, or start with torchrun or --nproc",
        )
    return address, _number(have, "MASTER_PORT", None)


def _port(job: str) -> int:
    """One port for one job, the same on all its ranks."""
    return FIRST_PORT + zlib.crc32(job.encode()) % PORTS
