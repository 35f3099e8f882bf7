"""SIGTERM while gRPC clients ask: each call that began is answered, each other may be repeated."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as protocol
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.parity.toy import make_toy
from tests.serving.process import Served, serving, wait_until

APART = [("grpc.use_local_subchannel_pool", 1)]
"""Channels of one process share their connections unless told."""
PER_CONNECTION = 5
"""calls of a client that connects anew all the time"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("bundles") / "toy").root


def request() -> protocol.ModelInferRequest:
    made = protocol.ModelInferRequest(model_name="graph.embed_text")
    made.inputs.add(name="tokens", datatype="INT32", shape=[1, 3])
    made.raw_input_contents.append(np.array([1, 2, 3], "<i4").tobytes())
    return made


class Clients:
    """Threads that ask until told to stop, whatever becomes of it: over a connection each, over
    one together, and over a new one all the time.
    """

    def __init__(self, address: str) -> None:
        self.seen = Counter[grpc.StatusCode]()
        self._address, self._stop, self._lock = address, threading.Event(), threading.Lock()

    @contextmanager
    def asking(self) -> Iterator[None]:
        together = grpc.insecure_channel(self._address, APART)
        threads = [threading.Thread(target=self._ask_over, args=(together,)) for _ in range(3)]
        threads += [threading.Thread(target=self._ask_over_one) for _ in range(3)]
        threads += [threading.Thread(target=self._ask_over_many) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(30)
            together.close()

    def _ask_over_one(self) -> None:
        with grpc.insecure_channel(self._address, APART) as channel:
            self._ask_over(channel)

    def _ask_over_many(self) -> None:
        while not self._stop.is_set():
            with grpc.insecure_channel(self._address, APART) as channel:
                for _ in range(PER_CONNECTION):
                    self._ask(channel)

    def _ask_over(self, channel: grpc.Channel) -> None:
        while not self._stop.is_set():
            self._ask(channel)

    def _ask(self, channel: grpc.Channel) -> None:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            answer = stub.ModelInfer(request(), timeout=20)
            code = grpc.StatusCode.OK if answer.outputs else grpc.StatusCode.DATA_LOSS
        except grpc.RpcError as error:
            code = error.code()
        with self._lock:
            self.seen[code] += 1


def killed_under_load(served: Served) -> Clients:
    clients = Clients(served.grpc)
    with clients.asking():
        wait_until(lambda: clients.seen[grpc.StatusCode.OK] > 100)
        assert list(clients.seen) == [grpc.StatusCode.OK]
        served.process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        assert served.process.wait(20) == 0
        assert time.monotonic() - start < 5
    return clients


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_sigterm_under_load_loses_no_call(kills: int, bundle: Path, tmp_path: Path) -> None:
    """The server's log has a line for each call whose message was taken, the clients' count has
    each answer: so those that got none never began.
    """
    refused = 0
    for number in range(kills):
        with serving(bundle, tmp_path / str(number)) as served:
            seen = killed_under_load(served).seen
            begun = Counter(line["status"] for line in served.logged() if "route" in line)
        assert set(seen) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, seen
        assert begun == {200: seen[grpc.StatusCode.OK]}
        refused += seen[grpc.StatusCode.UNAVAILABLE]
    assert refused >= kills
