"""A real server process: hostile connections, key, swap, drain, gRPC."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.parity.answers import embed
from tests.parity.toy import make_toy
from tests.serving.process import BODY, PATH, Served, serving, wait_until

WANTED = embed({"tokens": np.array([[1, 2, 3]], np.int32)})["embedding"][0]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles") / "toy"
    make_toy(root)
    return root


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(bundle, tmp_path_factory.mktemp("logs") / "log") as served:
        yield served


def embedding(content: bytes) -> list[float]:
    (output,) = json.loads(content)["outputs"]
    found: list[float] = output["data"]
    return found


def test_it_answers_as_the_reference_does(server: Served) -> None:
    status, content = server.request("POST", PATH, BODY)
    assert status == 200
    np.testing.assert_allclose(embedding(content), WANTED, atol=1e-5)
    assert list(server.about["models"]) == ["graph.codec_decode", "graph.embed_text"]


def test_grpc_gives_the_same_bytes(server: Served) -> None:
    import grpc
    from tritonclient.grpc import service_pb2 as protocol
    from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

    with grpc.insecure_channel(server.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        assert stub.ServerLive(protocol.ServerLiveRequest()).live
        assert stub.ServerReady(protocol.ServerReadyRequest()).ready
        assert stub.ServerMetadata(protocol.ServerMetadataRequest()).name == "mmprod"
        name = "graph.embed_text"
        assert stub.ModelReady(protocol.ModelReadyRequest(name=name)).ready
        assert not stub.ModelReady(protocol.ModelReadyRequest(name="nothing")).ready
        about = stub.ModelMetadata(protocol.ModelMetadataRequest(name=name))
        assert list(about.inputs[0].shape) == [-1, 3]
        raw, typed = (protocol.ModelInferRequest(model_name=name, id="mine") for _ in range(2))
        raw.inputs.add(name="tokens", datatype="INT32", shape=[1, 3])
        raw.raw_input_contents.append(np.array([1, 2, 3], "<i4").tobytes())
        tensor = typed.inputs.add(name="tokens", datatype="INT32", shape=[1, 3])
        tensor.contents.int_contents.extend([1, 2, 3])
        answers = [stub.ModelInfer(request) for request in (raw, typed)]
        rest = np.array(embedding(server.request("POST", PATH, BODY)[1]), np.float32)
        for answer in answers:
            assert answer.raw_output_contents[0] == rest.tobytes()
            assert answer.id == "mine"
            assert answer.parameters["runner"].string_param.startswith("onnxruntime")
        for change, code in (
            ({"model_name": "nothing"}, grpc.StatusCode.NOT_FOUND),
            ({"model_version": "7"}, grpc.StatusCode.NOT_FOUND),
        ):
            request = protocol.ModelInferRequest(model_name=name)
            request.MergeFrom(raw)
            for key, value in change.items():
                setattr(request, key, value)
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(request)
            assert caught.value.code() == code
        raw.raw_input_contents.append(b"more")
        raw.inputs[0].datatype = "FP16"
        for request in (raw, protocol.ModelInferRequest(model_name=name)):
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(request)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_hostile_connections_end_without_harm(bundle: Path, server: Served) -> None:
    head = b"POST " + PATH.encode() + b" HTTP/1.1\r\nHost: localhost\r\n"
    for data, status in (
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b" 400 "),
        (b"GET / HTTP/9.9\r\n\r\n", b" 400 "),
        (head + b"Content-Length: -1\r\n\r\n", b" 400 "),
        (head + b"Content-Length: 99999999999\r\n\r\n", b" 413 "),
        (head + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", b" 400 "),
        (head + b"X: " + b"y" * 40000 + b"\r\nConnection: close\r\n\r\n", b" 431 "),
        (head + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}", b" 400 "),
        (b"GET /%00%ff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", b" 404 "),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", b" 403 "),
    ):  # fmt: skip
        assert status in server.raw(data)[:30], data[:60]
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as flood,
        pytest.raises(ConnectionError),
    ):
        flood.sendall(b"GET / HTTP/1.1\r\n")
        for _ in range(4000):
            flood.sendall(b"X-Flood: " + b"z" * 1000 + b"\r\n")
    assert server.request("POST", PATH, BODY)[0] == 200
    assert server.process.poll() is None


def test_trailers_without_end_are_not_kept(server: Served) -> None:
    for path in (b"/nothing", PATH.encode()):
        head = b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\n"
        before = server.resident()
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as flood,
            pytest.raises(ConnectionError),
        ):
            flood.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
            for _ in range(400):
                flood.sendall(b"X-Flood: z\r\n" * 10_000)
        assert server.resident() - before < 16 * 2**20
    assert server.request("POST", PATH, BODY)[0] == 200


def test_a_second_signal_ends_at_once(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path / "log") as served:
        head = (
            b"POST " + PATH.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", served.port)) as waiting:
            waiting.sendall(head)  # keeps the drain busy for 10 s
            served.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            served.process.send_signal(signal.SIGTERM)
            start = time.monotonic()
            assert served.process.wait(20) == -signal.SIGTERM
            assert time.monotonic() - start < 5


def test_the_log_has_no_payload(server: Served) -> None:
    server.request("POST", PATH + "?secret=query", BODY, **{"X-Request-Id": "find-me"})
    wait_until(lambda: any(line.get("id") == "find-me" for line in server.logged()))
    (line,) = (line for line in server.logged() if line.get("id") == "find-me")
    assert line["model"] == "graph.embed_text"
    assert line["route"] == "/v2/models/{model}/infer"
    assert line["status"] == 200 and line["ms"] > 0
    assert "secret" not in server.log.read_text()


def test_a_key_is_needed_beyond_loopback(bundle: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    with serving(bundle, tmp_path / "log", "--key-file", str(key)) as served:
        assert served.request("GET", "/v2/health/live")[0] == 200
        assert served.request("POST", PATH, BODY)[0] == 401
        assert served.request("POST", PATH, BODY, Authorization="Bearer s3cret")[0] == 200
        import grpc
        from tritonclient.grpc import service_pb2 as protocol
        from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

        with grpc.insecure_channel(served.grpc) as channel:
            stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            request = protocol.ModelMetadataRequest(name="graph.embed_text")
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelMetadata(request)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            stub.ModelMetadata(request, metadata=(("authorization", "Bearer s3cret"),))


class Clients:
    """Threads that ask over kept connections until told to stop, and note what became of it."""

    def __init__(self, served: Served, count: int) -> None:
        self.ok, self.lost, self.refused, self.told = 0, list[str](), 0, 0
        self._served, self._stop = served, threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self) -> None:
        while not self._stop.is_set():
            connection = self._served.connect()
            try:
                connection.connect()
            except OSError:
                with self._lock:
                    self.refused += 1
                return  # nothing listens any more: no request was accepted
            with closing(connection):
                if not self._ask_over(connection):
                    return

    def _ask_over(self, connection: http.client.HTTPConnection) -> bool:
        """Ask until the server closes the connection (True), or something is wrong."""
        while not self._stop.is_set():
            try:
                connection.request("POST", PATH, BODY)
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(repr(error))
                return False
            if answer.status != 200 or not np.allclose(embedding(content), WANTED, atol=1e-5):
                self.lost.append(f"{answer.status} {content[:80]!r}")
                return False
            with self._lock:
                self.ok += 1
            if answer.getheader("connection") == "close":
                self.told += 1
                return True
        return False


def test_sigterm_under_load_loses_no_request(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path / "log") as served:
        clients = Clients(served, 8)
        wait_until(lambda: clients.ok > 50)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(20) == 0
        clients.stop()
        assert clients.told > 0  # to come back on another connection
        assert clients.lost == []
        assert clients.refused == 8
    answered = sum(1 for line in served.logged() if line.get("status") == 200)
    assert answered >= clients.ok


def test_a_bundle_is_swapped_without_a_failed_request(tmp_path: Path) -> None:
    first, second = make_toy(tmp_path / "first"), make_toy(tmp_path / "second")
    second.provenance["made"] = "anew"
    second.save()
    here = tmp_path / "current"
    here.symlink_to(first.root)
    with serving(here, tmp_path / "log") as served:
        clients = Clients(served, 4)
        wait_until(lambda: clients.ok > 20)
        here.unlink()
        here.symlink_to(second.root)
        served.process.send_signal(signal.SIGHUP)
        wait_until(lambda: served.metric("mmprod_bundle_swaps_total") == 1)
        before = clients.ok
        wait_until(lambda: clients.ok > before + 20)

        shutil.copytree(second.root, tmp_path / "bad")
        graph = tmp_path / "bad" / "onnx" / "embed_text.fp32.onnx"
        content = bytearray(graph.read_bytes())
        content[-1] ^= 1
        graph.write_bytes(content)
        here.unlink()
        here.symlink_to(tmp_path / "bad")
        os.kill(served.process.pid, signal.SIGHUP)
        wait_until(lambda: served.metric("mmprod_bundle_swaps_total") == 2)
        page = served.request("GET", "/metrics")[1].decode()
        assert 'mmprod_bundle_swaps_total{result="done"} 1.0' in page
        assert 'mmprod_bundle_swaps_total{result="refused"} 1.0' in page
        assert served.metric("mmprod_bundle") == 1
        clients.stop()
        assert clients.lost == [] and clients.refused == 0
        (refused,) = (line for line in served.logged() if "not swapped" in line.get("message", ""))
        assert "embed_text.fp32.onnx" in refused["message"]


def test_a_taken_port_is_told(server: Served, bundle: Path) -> None:
    from mmprod.errors import EnvironmentMissing
    from mmprod.serving.server import run_server
    from mmprod.serving.settings import Settings

    with pytest.raises(EnvironmentMissing, match=f"port {server.port}"):
        run_server(Settings(bundle, port=server.port, unproven=True), lambda ready: None)
