"""What REST and gRPC have in common: find the model, let so many requests in, time and count them.

It also knows the state of the server: loading, ready, draining; and swaps the bundle.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus

import mmprod
from mmprod.errors import ConfigError, MmprodError
from mmprod.serving.body import Bodies
from mmprod.serving.deployment import Deployment
from mmprod.serving.metrics import Metrics
from mmprod.serving.model import Answer, Model
from mmprod.serving.refusal import INTERNAL, Refused, bad, unavailable
from mmprod.serving.settings import Settings
from mmprod.serving.tensors import Sent, read_inputs

logger = logging.getLogger(__name__)
NAME = "mmprod"
LARGE = 256 * 1024
"""bytes of a request from which on it is parsed on another thread, so that others are not kept"""
UNKNOWN = "(unknown)"
"""Label of requests for models that do not exist."""


@dataclass(frozen=True)
class Ask:
    """One request, whatever protocol it came by."""

    model: str
    version: str
    inputs: Sequence[Sent]
    outputs: Sequence[str]
    protocol: str
    id: str
    bytes: int


@dataclass(frozen=True)
class Reply:
    """The model that answered, its answer, and the outputs to send."""

    model: Model
    answer: Answer
    names: Sequence[str]


class Service:
    """One server's models and state. `open_anew` opens the bundle as it lies there now."""

    def __init__(
        self, settings: Settings, metrics: Metrics, open_anew: Callable[[], Deployment]
    ) -> None:
        self.settings, self.metrics = settings, metrics
        self.draining = False
        self.bodies = Bodies(settings.limits)
        self._open = open_anew
        self._swap = asyncio.Lock()
        self._running = 0
        self.current = open_anew()
        self._tell(self.current)
        metrics.ready.set_function(lambda: float(not self.draining))

    @property
    def version(self) -> str:
        return mmprod.__version__

    async def infer(self, ask: Ask) -> Reply:
        """Raises Refused; whatever else went wrong is logged and becomes one, too."""
        started = time.monotonic()
        deployment = self.current
        labels = (ask.model if ask.model in deployment.models else UNKNOWN, ask.protocol)
        status = "cancelled"
        try:
            with self._admitted(), deployment.in_use():
                reply = await self._answer(deployment, ask)
            status = str(HTTPStatus.OK.value)
        except Refused as refusal:
            status = str(refusal.status.value)
            raise
        finally:
            self.metrics.requests.labels(*labels, status).inc()
            self.metrics.seconds.labels(*labels).observe(time.monotonic() - started)
        return reply

    async def swap(self) -> bool:
        """Open the bundle anew, verified whole, and put it in the place of the old one, which
        answers what it has taken. False when it could not be opened: the old one stays.
        """
        async with self._swap:
            try:
                fresh = await asyncio.to_thread(self._open)
            except Exception as error:
                self.metrics.swaps.labels("refused").inc()
                if isinstance(error, MmprodError):
                    logger.error("the bundle was not swapped: %s", error.message)
                else:
                    logger.exception("the bundle was not swapped")
                return False
            old, self.current = self.current, fresh
            self._tell(fresh, old)
            self.metrics.swaps.labels("done").inc()
            logger.info("serving %s %s", fresh.identity.name, fresh.identity.sha256[:12])
            await asyncio.to_thread(old.close, self.settings.limits.answer_s)
            return True

    def close(self) -> None:
        self.current.close(self.settings.drain_s)

    async def _answer(self, deployment: Deployment, ask: Ask) -> Reply:
        model = deployment.model(ask.model, ask.version)
        if ask.bytes > LARGE:
            inputs = await asyncio.to_thread(read_inputs, model.inputs, ask.inputs)
        else:
            inputs = read_inputs(model.inputs, ask.inputs)
        ports = [port.name for port in model.outputs]
        for name in ask.outputs:
            if name not in ports:
                raise bad(f"there is no output {name[:64]!r}; outputs: {', '.join(ports)}")
        seconds = self.settings.limits.answer_s
        try:
            async with asyncio.timeout(seconds):
                answer = await model.infer(inputs)
        except Refused:
            raise
        except ConfigError as error:
            raise bad(error.message) from error
        except TimeoutError as error:
            what = f"no answer within {seconds:g} s"
            raise Refused(HTTPStatus.GATEWAY_TIMEOUT, what, 1) from error
        except Exception as error:
            logger.exception("request %s: %s failed", ask.id, ask.model)
            raise Refused(HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL) from error
        return Reply(model, answer, [n for n in ports if not ask.outputs or n in ask.outputs])

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        most = self.settings.limits.requests
        if self._running >= most:
            raise unavailable(f"{most} requests are at work already")
        self._running += 1
        self.metrics.running.set(self._running)
        try:
            yield
        finally:
            self._running -= 1
            self.metrics.running.set(self._running)

    def _tell(self, fresh: Deployment, old: Deployment | None = None) -> None:
        if old:
            self.metrics.bundle.remove(old.identity.name, old.identity.sha256)
        self.metrics.bundle.labels(fresh.identity.name, fresh.identity.sha256).set(1)
