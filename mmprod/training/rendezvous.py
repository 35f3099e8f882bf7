"""How several ranks meet: a roll call in rank 0's store, then the process group.

torch alone waits in silence, and for as long as collectives may take. Here the ranks sign in at
the store one by one, so that a job whose ranks do not all come ends within its time-out and names
those that are missing, on every rank that did come.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.distributed_c10d import _set_pg_timeout

from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError, MmprodError
from mmprod.training.environment import TIMEOUT, TIMEOUT_S, Place, find_place
from mmprod.training.lifeline import Hub, Loss, Strand, hold
from mmprod.training.network import (
    GLOO,
    NCCL,
    Interface,
    choose_interface,
    is_own,
    own_address,
    resolved,
)

logger = logging.getLogger(__name__)

REMIND_S = 30.0
LINGER_S = 5.0
VERDICT, WITHDRAWN, READ = "verdict", "withdrawn", "read"
"""Keys of the store."""
WITHDRAW_S = 5.0
"""How long a rank that fails before the meeting looks for the others, to tell them."""


@dataclass(frozen=True)
class _Roll:
    """Who came, in rank order; where rank 0's lifeline listens."""

    hosts: list[str]
    several: bool
    hub: tuple[str, int]
    token: str


def timeout_s() -> int:
    """The time-out in force. Raises ConfigError."""
    text = os.environ.get(TIMEOUT, "")
    if text and not (text.isascii() and text.isdigit() and int(text)):
        raise ConfigError(f"{TIMEOUT}={text!r} is no number of seconds", hint="e.g. 300")
    return int(text) if text else TIMEOUT_S


def meet(place: Place, backend: str, wait: timedelta) -> None:
    """Make the process group of `place.size` ranks, on all of them; `wait`: for its collectives.

    Raises EnvironmentMissing when the ranks do not come, or cannot reach each other.
    """
    limit = timeout_s()
    deadline = time.monotonic() + limit
    store = _open_store(place, limit)
    line, roll = _roll_call(store, place, deadline)
    hold(line)
    face = choose_interface(place.address, several=roll.several)
    if face.warning and place.local_rank == 0:
        logger.warning("%s", face.warning)
    if place.rank == 0:
        _announce(place, roll, backend, face)
    left = timedelta(seconds=max(10.0, deadline - time.monotonic()))
    try:
        dist.init_process_group(
            backend,
            store=PrefixStore("group", store),
            rank=place.rank,
            world_size=place.size,
            timeout=left,
        )
        dist.barrier()
    except RuntimeError as error:
        way = f"{face.name or 'its interface'} {face.address}".strip()
        raise EnvironmentMissing(
            f"the ranks met at {place.address}:{place.port}, but rank {place.rank} on "
            f"{socket.gethostname()} ({way}) could not connect to all others",
            hint=f"set {GLOO} (and {NCCL}) to an interface on which the nodes reach each other; "
            "open the ports between them",
        ) from error
    _set_pg_timeout(wait)


def _open_store(place: Place, limit: int) -> Store:
    """The key-value store in which the ranks sign in."""
    serves = _serves(place)
    try:
        store = TCPStore(
            place.address,
            place.port,
            None,
            serves,
            timeout=timedelta(seconds=limit),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        where = f"{place.address}:{place.port}"
        if serves:
            raise EnvironmentMissing(
                f"rank 0 cannot listen on {where}: {_first_line(error)}",
                hint="another job may have this port: set another MASTER_PORT; MASTER_ADDR must be "
                "the node of rank 0",
            ) from error
        to = resolved(place.address) or "no address"
        raise EnvironmentMissing(
            f"rank {place.rank} on {socket.gethostname()} did not reach rank 0 at {where} ({to}) "
            f"within {limit} s",
            hint="is rank 0 running there, is the port open, and does every node know that name "
            "by an address that is not its own?",
        ) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"mmprod/{attempt}", store)


def _serves(place: Place) -> bool:
    """Whether this process holds the store; a torchrun agent does it for its ranks."""
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return place.rank == 0 and not by_agent


def _roll_call(store: Store, place: Place, deadline: float) -> tuple[Hub | Strand, _Roll]:
    host = socket.gethostname()
    try:
        if store.add(f"count/{place.rank}", 1) > 1:
            raise ConfigError(
                f"two processes are rank {place.rank} of {place.size} at "
                f"{place.address}:{place.port}; the second is on {host}",
                hint="give every node its own --node-rank, and every job its own port",
            )
        mine = {"host": host, "local": is_own(place.address)}
        store.set(f"here/{place.rank}", json.dumps(mine))
        if place.rank == 0:
            return _call(store, place, deadline)
        return _answer(store, place, deadline)
    except RuntimeError as error:
        raise EnvironmentMissing(
            f"rank {place.rank} on {host} lost rank 0 at {place.address}:{place.port} while the "
            f"ranks were meeting: {_first_line(error)}",
            hint="rank 0, or what started it, has ended: see its output",
        ) from error


def _call(store: Store, place: Place, deadline: float) -> tuple[Hub, _Roll]:
    """Rank 0: wait for all, then publish what they need to know, or why it will not be."""
    begun = reminded = time.monotonic()
    missing = set(range(place.size))
    while True:
        missing -= {rank for rank in sorted(missing) if store.check([f"here/{rank}"])}
        here = sorted(set(range(place.size)) - missing)
        if store.check([WITHDRAWN]):
            gone = Loss(**json.loads(store.get(WITHDRAWN)))
            hint = f"see the output of rank {gone.rank}"
            _dissolve(store, here, gone.exit_code, f"before the ranks had met, {gone}", hint)
        now = time.monotonic()
        if not missing or now > deadline:
            break
        if now - reminded > REMIND_S:
            reminded = now
            logger.info("%.0f s: waiting for %s", now - begun, _ranks(missing))
        time.sleep(0.05 if now - begun < 10 else 0.5)
    signed: list[dict[str, Any]] = [json.loads(store.get(f"here/{rank}")) for rank in here]
    if missing:
        hosts = ", ".join(sorted({one["host"] for one in signed}))
        text = (
            f"{_ranks(missing)} of {place.size} did not come to {place.address}:{place.port} "
            f"within {timeout_s()} s; there are {_ranks(here)} on {hosts}"
        )
        hint = "look at the nodes that are missing; --rendezvous-timeout waits longer"
        _dissolve(store, here, EnvironmentMissing.exit_code, text, hint)
    several = not all(one["local"] for one in signed)
    address = (own_address(place.address) if several else "") or "127.0.0.1"
    token = secrets.token_hex(16)
    hub = Hub(signed[0]["host"], address, place.size, token)
    roll = _Roll([one["host"] for one in signed], several, (address, hub.port), token)
    store.set(VERDICT, json.dumps({"roll": asdict(roll)}))
    return hub, roll


def _answer(store: Store, place: Place, deadline: float) -> tuple[Strand, _Roll]:
    """Another rank: wait for rank 0's verdict. Polls, so that signals are heard."""
    pause = 0.05
    while not store.check([VERDICT]):
        if time.monotonic() > deadline + 15:
            raise EnvironmentMissing(
                f"rank 0 at {place.address}:{place.port} came, but did not go on",
                hint="see the output of rank 0",
            )
        time.sleep(pause)
        pause = min(1.0, pause * 1.2)
    verdict = json.loads(store.get(VERDICT))
    if "roll" not in verdict:
        store.add(READ, 1)
        raise _error(**verdict)
    roll = _Roll(**verdict["roll"])
    hub, host = (roll.hub[0], roll.hub[1]), roll.hosts[place.rank]
    try:
        return Strand(place.rank, host, hub, roll.hosts[0], roll.token), roll
    except OSError as error:
        raise EnvironmentMissing(
            f"rank {place.rank} on {host} cannot connect to rank 0 on {roll.hosts[0]} at "
            f"{hub[0]}:{hub[1]}: {error.strerror or error}",
            hint="the nodes must reach each other on all ports, by addresses that are not loopback",
        ) from error


def _dissolve(store: Store, here: list[int], code: int, text: str, hint: str) -> NoReturn:
    """Rank 0: the ranks will not meet. Those that are here hear it before the store is gone."""
    verdict: dict[str, Any] = {"code": code, "text": text, "hint": hint}
    store.set(VERDICT, json.dumps(verdict))
    until = time.monotonic() + LINGER_S
    while store.add(READ, 0) < len(here) - 1 and time.monotonic() < until:
        time.sleep(0.05)
    raise _error(**verdict)


def _error(code: int, text: str, hint: str) -> MmprodError:
    """The error class with this exit code."""
    kinds: list[type[MmprodError]] = [ConfigError, EnvironmentMissing, IntegrityError]
    return next((kind for kind in kinds if kind.exit_code == code), MmprodError)(text, hint=hint)


def withdraw(code: int, said: str) -> None:
    """Tell ranks that wait for this one that it has failed (`said`: why) before it met them."""
    try:
        place = find_place()
    except ConfigError:
        return
    if place.size == 1 or _serves(place):
        return
    deadline = time.monotonic() + WITHDRAW_S
    while not _answers(place):
        if time.monotonic() > deadline:
            return
        time.sleep(0.2)
    gone = Loss(place.rank, socket.gethostname(), code, said)
    with contextlib.suppress(EnvironmentMissing, RuntimeError):  # rank 0 has ended as well
        store = _open_store(place, int(WITHDRAW_S))
        if not store.check([VERDICT]):
            store.set(WITHDRAWN, json.dumps(asdict(gone)))


def _answers(place: Place) -> bool:
    """Whether somebody listens at the meeting point."""
    try:
        socket.create_connection((place.address, place.port), timeout=1).close()
    except OSError:
        return False
    return True


def _announce(place: Place, roll: _Roll, backend: str, face: Interface) -> None:
    nodes = place.nodes or len(set(roll.hosts))
    logger.info(
        "%d ranks on %d %s (%s), %s over %s (%s), rendezvous %s:%d",
        place.size,
        nodes,
        "node" if nodes == 1 else "nodes",
        place.launcher,
        "nccl" if "nccl" in backend else "gloo",
        f"{face.name} {face.address}".strip() or "an unknown interface",
        face.why or "unchecked",
        place.address,
        place.port,
    )


def _ranks(ranks: set[int] | list[int]) -> str:
    shown = sorted(ranks)
    more = f" and {len(shown) - 16} more" if len(shown) > 16 else ""
    return f"rank{'s' * (len(shown) > 1)} {', '.join(map(str, shown[:16]))}{more}"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].removesuffix(".")
