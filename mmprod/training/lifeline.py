"""A connection from every rank to rank 0, so that a lost rank ends the whole job within seconds.

    rank 1 ---.
    rank 2 ----> hub (a thread of rank 0): first loss -> told to all ranks, who leave

A process that ends, however it ends, closes its connection: the kernel tells the hub at once. A
machine that vanishes stops answering keep-alive probes, which the kernel sends too: about 20 s.
So a rank that is merely busy is never taken for dead. gloo notices a lost neighbour only inside a
collective with it, NCCL not at all, and launchers kill the ranks of their own node only (deepspeed
over ssh), or wait for ranks that wait for each other.

A rank that leaves says its exit code first. Others leave with the same code (the cause, not its
echo, decides what a scheduler does), after a moment in which they may come to the same end by
themselves. A rank that says nothing has died; the others then leave with 3.
"""

from __future__ import annotations

import abc
import atexit
import hmac
import logging
import os
import resource
import selectors
import socket
import sys
import threading
from dataclasses import asdict, dataclass
from typing import Any

from mmprod.errors import EnvironmentMissing
from mmprod.training.environment import record_exit
from mmprod.training.lines import Peer, probe, send

logger = logging.getLogger(__name__)

DIED = EnvironmentMissing.exit_code
GRACE_DEAD_S, GRACE_LEFT_S = 3.0, 10.0
"""How long a rank may still end by itself after another died, or left with an error."""
CONNECT_S = 30.0


@dataclass(frozen=True)
class Loss:
    """The first rank that is gone; code None: it died. `said`: its error message."""

    rank: int
    host: str
    code: int | None
    said: str = ""

    @property
    def exit_code(self) -> int:
        return DIED if self.code is None else self.code

    def __str__(self) -> str:
        who = f"rank {self.rank} on {self.host}"
        if self.code is None:
            return f"{who} died (killed, crashed or out of reach): ending the job"
        return f"{who} left with exit code {self.code}" + (f": {self.said}" if self.said else "")


class Lifeline(abc.ABC):
    """One rank's end; rank 0's is the hub. `rank`, `host`: this process."""

    def __init__(self, rank: int, host: str) -> None:
        self.rank, self.host = rank, host
        self._lost: Loss | None = None
        self._changed = threading.Event()
        self._closing = False
        self._lock = threading.Lock()

    @property
    def is_hub(self) -> bool:
        return self.rank == 0

    def loss(self, wait_s: float = 0.0) -> Loss | None:
        """The loss that ends the job, if one comes within `wait_s`."""
        self._changed.wait(wait_s)
        return self._lost

    def leave(self, code: int, said: str = "") -> None:
        """Tell the others that this rank ends on purpose. Call it right before."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._tell(Loss(self.rank, self.host, code, said))

    def forget(self) -> None:
        """In a forked child: let go of the connections, or they outlive the rank."""
        self._closing = True
        self._close()

    @abc.abstractmethod
    def _tell(self, loss: Loss) -> None: ...

    @abc.abstractmethod
    def _close(self) -> None: ...

    def _end(self, loss: Loss) -> None:
        """Note the first loss and end this process with its code unless it ends by itself before.

        From a thread: the main one may wait in a collective that never returns.
        """
        if self._changed.is_set() or self._closing:
            return
        self._lost = loss
        self._changed.set()
        hub_died = loss.rank == 0 and loss.code is None
        if self.is_hub or (hub_died and os.environ.get("LOCAL_RANK") == "0"):
            logger.error("%s", loss)
        grace = GRACE_DEAD_S if loss.code is None else GRACE_LEFT_S
        timer = threading.Timer(grace, self._exit, (loss.exit_code,))
        timer.daemon = True
        timer.start()

    def _exit(self, code: int) -> None:
        if self._closing:
            return
        record_exit(code)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Hub(Lifeline):
    """Rank 0's end: listens on `address`, knows every rank by its first line."""

    def __init__(self, host: str, address: str, size: int, token: str) -> None:
        super().__init__(0, host)
        _room_for(size)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._server = socket.create_server((address, 0), family=family, backlog=min(size, 4096))
        self.port: int = self._server.getsockname()[1]
        self._token = token
        self._select = selectors.DefaultSelector()
        self._select.register(self._server, selectors.EVENT_READ)
        self._peers: dict[socket.socket, Peer] = {}
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def _watch(self) -> None:
        while not self._closing:
            for key, _ in self._select.select():
                if key.fileobj is self._server:
                    self._accept()
                else:
                    self._hear(key.fileobj)  # type: ignore[arg-type]  # sockets only, see _accept

    def _accept(self) -> None:
        try:
            connection, _ = self._server.accept()
            probe(connection)
        except OSError as error:  # it is gone again already
            logger.debug("a connection was lost while it was made: %s", error)
            return
        with self._lock:
            self._peers[connection] = Peer()
        self._select.register(connection, selectors.EVENT_READ)

    def _hear(self, connection: socket.socket) -> None:
        peer = self._peers[connection]
        for line in peer.lines(connection):
            try:
                loss = self._understand(peer, line)
            except (KeyError, TypeError, ValueError) as error:  # not one of ours, or garbled
                logger.debug("a line that is not understood: %r", error)
                peer.closed = True
                break
            if loss is not None and loss.code:
                self._lose(loss)
        if peer.closed:
            self._select.unregister(connection)
            with self._lock:
                del self._peers[connection]
            connection.close()
            if peer.rank is not None and not peer.left:
                self._lose(Loss(peer.rank, peer.host, None))

    def _understand(self, peer: Peer, line: dict[str, Any]) -> Loss | None:
        """A rank's first line says who it is, its second one how it leaves. Raises KeyError,
        TypeError, ValueError.
        """
        if peer.rank is not None:
            loss = Loss(**line)
            peer.closed = peer.left = True
            return loss
        told = str(line["token"]).encode()
        if not hmac.compare_digest(told, self._token.encode()):
            raise ValueError("another token")
        rank, peer.host = int(line["rank"]), str(line["host"])
        peer.rank = rank
        return None

    def _lose(self, loss: Loss) -> None:
        if not self._changed.is_set() and not self._closing:
            self._tell(loss)
            self._end(loss)

    def _tell(self, loss: Loss) -> None:
        with self._lock:
            known = [c for c, peer in self._peers.items() if peer.rank is not None]
        for connection in known:
            send(connection, asdict(loss))

    def _close(self) -> None:
        self._server.close()
        for connection in self._peers:
            connection.close()


class Strand(Lifeline):
    """Another rank's end. Raises OSError where rank 0 cannot be reached."""

    def __init__(
        self, rank: int, host: str, hub: tuple[str, int], hub_host: str, token: str
    ) -> None:
        super().__init__(rank, host)
        self._hub_host = hub_host
        self._socket = socket.create_connection(hub, timeout=CONNECT_S)
        self._socket.settimeout(None)
        probe(self._socket)
        send(self._socket, {"token": token, "rank": rank, "host": host})
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def _watch(self) -> None:
        peer = Peer()
        while not peer.closed:
            for line in peer.lines(self._socket):
                loss = Loss(**line)
                if loss.rank == 0 and loss.code == 0:
                    return
                self._end(loss)
                return
        self._end(Loss(0, self._hub_host, None))

    def _tell(self, loss: Loss) -> None:
        send(self._socket, asdict(loss))

    def _close(self) -> None:
        self._socket.close()


def _room_for(size: int) -> None:
    """Raise the soft limit of open files, 1024 by default, towards what `size` ranks need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1024 + 2 * size
    if soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


_mine: Lifeline | None = None


def hold(line: Lifeline) -> None:
    """Keep `line` as this process's own. Its end is announced even where nobody calls `leave`."""
    global _mine
    _mine = line
    os.register_at_fork(after_in_child=line.forget)
    atexit.register(lambda: line.leave(int(hasattr(sys, "last_value"))))


def held() -> bool:
    """Whether this process has met the other ranks."""
    return _mine is not None


def loss(wait_s: float = 0.0) -> Loss | None:
    """The loss that ends this process's job, if one is known or comes within `wait_s`."""
    return _mine.loss(wait_s) if _mine is not None else None


def say_goodbye(code: int, said: str = "") -> None:
    """Announce this rank's end to the others; nothing without a lifeline."""
    if _mine is not None:
        _mine.leave(code, said)
