"""gRPC over a deployment of fakes: the limits of REST hold for its messages, too."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as protocol
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from mmprod.serving.grpc_edge import start_grpc
from mmprod.serving.settings import Settings
from tests.serving.fakes import SETTINGS, limited, serve

INFER = "/inference.GRPCInferenceService/ModelInfer"
MIB = 2**20


def run(settings: Settings, ask: Callable[[grpc.aio.Channel], Awaitable[Any]], **how: Any) -> Any:
    """What `ask` gives over a channel to a server with these settings."""
    service = serve(settings, **how)

    async def both() -> Any:
        server = await start_grpc(service, "127.0.0.1", 0)
        options = [("grpc.max_send_message_length", -1)]
        place = f"127.0.0.1:{server.port}"
        async with grpc.aio.insecure_channel(place, options=options) as channel:
            found = await ask(channel)
        await server.stop(5)
        return found

    try:
        return asyncio.run(both())
    finally:
        service.close()


def asked(**more: Any) -> Any:
    request = protocol.ModelInferRequest(model_name="graph.embed_text", **more)
    request.inputs.add(name="tokens", datatype="INT32", shape=[1, 8])
    request.raw_input_contents.append(np.ones(8, "<i4").tobytes())
    return request


def refused(request: Any, settings: Settings = SETTINGS, **how: Any) -> grpc.aio.AioRpcError:
    async def ask(channel: grpc.aio.Channel) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await GRPCInferenceServiceStub(channel).ModelInfer(request, **how)  # type: ignore[no-untyped-call]
        return caught.value

    found: grpc.aio.AioRpcError = run(settings, ask)
    return found


def opened(channel: grpc.aio.Channel, messages: AsyncIterator[Any]) -> Awaitable[Any]:
    """The same call, whose message comes when `messages` gives it."""
    return channel.stream_unary(
        INFER,
        request_serializer=protocol.ModelInferRequest.SerializeToString,
        response_deserializer=protocol.ModelInferResponse.FromString,
    )(messages)


async def never() -> AsyncIterator[Any]:
    await asyncio.sleep(60)
    yield asked()


async def nothing() -> AsyncIterator[Any]:
    for message in ():
        yield message


@pytest.mark.parametrize(
    ("settings", "messages", "code"),
    [
        (limited(receive_s=0.1), never, grpc.StatusCode.DEADLINE_EXCEEDED),
        (replace(SETTINGS, key="s3cret"), never, grpc.StatusCode.UNAUTHENTICATED),
        (SETTINGS, nothing, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_who_sends_no_message_or_no_key_is_not_waited_for(
    settings: Settings, messages: Any, code: grpc.StatusCode
) -> None:
    async def ask(channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(opened(channel, messages()), 8)
        assert caught.value.code() == code
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        key = (("authorization", "Bearer s3cret"),)
        assert (await stub.ModelInfer(asked(), metadata=key)).outputs[0].shape == [1, 6]
        assert (await stub.ServerLive(protocol.ServerLiveRequest())).live

    run(settings, ask)


@pytest.mark.parametrize(
    ("field", "count", "words"),
    [
        ("inputs", 33, "more than 32 inputs"),
        ("outputs", 33, "more than 32 inputs or outputs"),
        ("shape", 9, "more than 8 axes"),
        ("id", 257, "more than 256 characters"),
    ],
)
def test_the_counts_of_json_hold(field: str, count: int, words: str) -> None:
    request = asked()
    for _ in range(count):
        if field == "shape":
            request.inputs[0].shape.append(1)
        elif field == "id":
            request.id += "x"
        else:
            getattr(request, field).add(name="tokens")
    error = refused(request)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert words in str(error.details())


def test_the_bytes_of_a_message_and_of_all_are_bounded() -> None:
    request = asked(id="x")
    request.raw_input_contents[0] = bytes(2 * MIB)
    error = refused(request, limited(body_bytes=MIB))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    error = refused(asked(), limited(all_bodies_bytes=20))
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    told = dict(error.trailing_metadata() or ())
    assert told["retry-after"] == "1" and len(told["x-request-id"]) == 32


def test_what_is_small_only_while_compressed_is_refused() -> None:
    request = asked()
    request.raw_input_contents[0] = bytes(64 * MIB)
    error = refused(request, limited(body_bytes=MIB), compression=grpc.Compression.Gzip)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_call_has_its_line_in_the_log_and_its_id(caplog: pytest.LogCaptureFixture) -> None:
    async def ask(channel: grpc.aio.Channel) -> list[str]:
        stub, found = GRPCInferenceServiceStub(channel), []  # type: ignore[no-untyped-call]
        for given in ("mine-1", "not an id"):
            call = stub.ModelInfer(asked(), metadata=(("x-request-id", given),))
            await call
            found.append(str(dict(await call.trailing_metadata())["x-request-id"]))
        return found

    with caplog.at_level(logging.INFO, "mmprod.serving.access"):
        mine, other = run(SETTINGS, ask)
    assert mine == "mine-1" and " " not in other
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    assert [line["id"] for line in lines] == [mine, other]
    assert {(line["method"], line["model"], line["status"]) for line in lines} == {
        ("gRPC", "graph.embed_text", 200)
    }


async def stopping(seconds: float, message_after_s: float) -> tuple[Any, Any, float]:
    """A server is stopped while a call waits for its message and before another begins: what
    becomes of both, and how long it took.
    """
    service = serve(SETTINGS)
    server = await start_grpc(service, "127.0.0.1", 0)

    async def slowly() -> AsyncIterator[Any]:
        await asyncio.sleep(message_after_s)
        yield asked()

    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        begun = asyncio.ensure_future(outcome(opened(channel, slowly())))
        await asyncio.sleep(0.2)
        start = time.monotonic()
        stop = asyncio.create_task(server.stop(seconds))
        await asyncio.sleep(0.1)
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        late = await outcome(stub.ModelInfer(asked()))
        await stop
        took = time.monotonic() - start
        found = await begun
    service.close()
    return found, late, took


async def outcome(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error


def test_a_call_that_has_begun_is_answered_and_a_late_one_refused() -> None:
    found, late, took = asyncio.run(stopping(8, 0.5))
    assert found.outputs[0].shape == [1, 6]
    assert late.code() == grpc.StatusCode.UNAVAILABLE
    assert "stopping" in str(late.details())
    assert dict(late.trailing_metadata())["retry-after"] == "1"
    assert took < 2


def test_a_call_that_does_not_end_is_given_up_in_time() -> None:
    found, late, took = asyncio.run(stopping(0.5, 60))
    assert isinstance(found, grpc.aio.AioRpcError)
    assert late.code() == grpc.StatusCode.UNAVAILABLE
    assert 0.2 <= took < 3


def test_a_call_that_does_not_end_cancels_nobody_else() -> None:
    """Others ask on, each over a connection of its own, until they are told the end."""

    async def stopped() -> list[Any]:
        service = serve(SETTINGS)
        server = await start_grpc(service, "127.0.0.1", 0)
        place, found = f"127.0.0.1:{server.port}", []

        async def never() -> AsyncIterator[Any]:
            await asyncio.sleep(60)
            yield asked()

        async def ask_on() -> None:
            async with grpc.aio.insecure_channel(place) as channel:
                stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
                while True:
                    found.append(await outcome(stub.ModelInfer(asked(), timeout=20)))
                    late = isinstance(found[-1], grpc.aio.AioRpcError)
                    if late and "stopping" not in str(found[-1].details()):
                        return

        async with grpc.aio.insecure_channel(place) as channel:
            stuck = asyncio.ensure_future(outcome(opened(channel, never())))
            others = [asyncio.ensure_future(ask_on()) for _ in range(4)]
            await asyncio.sleep(0.3)
            await server.stop(2)
            await asyncio.gather(*others)
            await stuck
        service.close()
        return found

    errors = [one for one in asyncio.run(stopped()) if isinstance(one, grpc.aio.AioRpcError)]
    assert len(errors) >= 4
    assert {error.code() for error in errors} == {grpc.StatusCode.UNAVAILABLE}
