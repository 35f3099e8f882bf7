"""The running server: sockets, signals, drain. The edge to uvicorn.

SIGTERM and SIGINT: not ready any more; for GRACE_S requests are still taken and their connections
closed with the answer, so that clients go elsewhere. Then nobody is let in any more; after SETTLE_S
the socket closes, what is at work is finished, and the process ends with 0. SIGHUP: take the bundle
anew.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import warnings
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
import uvloop
from PIL import Image

from mmprod.serving.connection import BoundedConnection
from mmprod.serving.deployment import open_deployment
from mmprod.serving.door import Door
from mmprod.serving.grpc_edge import start_grpc
from mmprod.serving.kit import Searcher
from mmprod.serving.metrics import Metrics
from mmprod.serving.rest import build_routes
from mmprod.serving.service import Service
from mmprod.serving.settings import Settings
from mmprod.serving.sockets import allow_files, listen, refuse_newcomers

logger = logging.getLogger(__name__)
GRACE_S = 0.5
SETTLE_S = 0.1
BACKLOG = 512
SPARE_FILES = 512


@dataclass(frozen=True)
class Listening:
    """A server that is ready: where, and what it serves. grpc_port 0: no gRPC."""

    port: int
    grpc_port: int
    service: Service


def run_server(
    settings: Settings,
    on_ready: Callable[[Listening], None],
    searcher: Searcher | None = None,
) -> None:
    """Serve until a signal says stop. Raises as `open_deployment`, and EnvironmentMissing when a
    port is taken.
    """
    settings.check()
    # Once for the process: the context manager of `data.pictures` is not for threads.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    allow_files(settings.limits.connections + SPARE_FILES)
    with listen(settings.host, settings.port) as listener:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the bundle is being opened anyway
        metrics = Metrics()
        service = Service(settings, metrics, lambda: open_deployment(settings, metrics, searcher))
        settle()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(service, listener, on_ready))
        service.close()


def settle() -> None:
    """Leave what is there out of the collections of garbage to come: it stays as long as the
    bundle, and looking through all of it stopped every thread for 40 ms (docs/adr/0028).
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def _serve(
    service: Service, listener: socket.socket, on_ready: Callable[[Listening], None]
) -> None:
    settings = service.settings
    config = uvicorn.Config(
        Door(build_routes(service), service),
        http=cast(Any, partial(BoundedConnection, settings.limits)),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(settings.limits.idle_s),
        timeout_graceful_shutdown=int(settings.drain_s),
    )
    server, grpc_port = _Server(config, service, listener), 0
    if settings.grpc_port is not None:
        beside = await start_grpc(service, settings.host, settings.grpc_port)
        server.stop_beside, grpc_port = beside.stop, beside.port
    loop = asyncio.get_running_loop()
    swaps: set[asyncio.Task[bool]] = set()

    def swap() -> None:
        if service.draining:
            return
        task = loop.create_task(service.swap())
        swaps.add(task)
        task.add_done_callback(swaps.discard)
        task.add_done_callback(lambda done: settle())

    loop.add_signal_handler(signal.SIGHUP, swap)
    port = listener.getsockname()[1]
    loop.call_soon(on_ready, Listening(port, grpc_port, service))
    await server.serve(sockets=[listener])
    if swaps:
        await asyncio.wait(swaps)


class _Server(uvicorn.Server):
    """uvicorn with our way to end."""

    def __init__(self, config: uvicorn.Config, service: Service, listener: socket.socket) -> None:
        super().__init__(config)
        self._service, self._listener = service, listener
        self._loop = asyncio.get_running_loop()
        self.stop_beside: Callable[[float], Coroutine[Any, Any, None]] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; a second one ends the process as if nobody handled it."""
        if self._service.draining:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
            return
        self._service.draining = True
        self._loop.call_soon_threadsafe(self._loop.call_later, GRACE_S, self._refuse)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Both protocols finish at once, in the time for it and, where a client reads nothing, a
        little more.
        """
        ends = [super().shutdown(sockets)]
        if self.stop_beside is not None:
            ends.append(self.stop_beside(self._service.settings.drain_s))
        await asyncio.gather(*ends)

    def _refuse(self) -> None:
        refuse_newcomers(self._listener)
        self._loop.call_later(SETTLE_S, self._stop)

    def _stop(self) -> None:
        self.should_exit = True
