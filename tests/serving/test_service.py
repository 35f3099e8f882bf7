"""The state of a server: admission, deadlines, clients that leave, swaps, counting."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mmprod.errors import IntegrityError
from mmprod.graphs.runner import Array
from mmprod.serving.given import Given
from tests.parity.answers import FakeRunner
from tests.serving.fakes import (
    SETTINGS,
    SPECS,
    answer,
    ask,
    deploy,
    file,
    get,
    infer,
    limited,
    png,
    serve,
    tensor,
    text,
)

TOKENS = [tensor("tokens", "INT32", [1] * 8, [1, 8])]
PATH = "/v2/models/graph.embed_text/infer"
BODY = json.dumps({"inputs": TOKENS}).encode()


class Slow(FakeRunner):
    """Waits at a gate."""

    def __init__(self, name: str = "embed_text") -> None:
        super().__init__(SPECS[name], answer(SPECS[name]))
        self.gate, self.entered = threading.Event(), threading.Event()

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.entered.set()
        assert self.gate.wait(10)
        return super().__call__(inputs)


class Broken(FakeRunner):
    """Fails with words that must not leave the machine."""

    def __init__(self, name: str = "embed_text") -> None:
        super().__init__(SPECS[name], answer(SPECS[name]))

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise IntegrityError("/secret/path failed in ONNX Runtime: at 0x7f00")


def test_an_inner_failure_is_told_in_general_words() -> None:
    service = serve(runners={"embed_text": Broken()})
    for got in (
        infer(service, "graph.embed_text", TOKENS),
        infer(service, "embed", [text("text", "a")]),
    ):
        assert got.status == 500
        assert "secret" not in got.body.decode() and "its log tells why" in got.json()["error"]
    service.close()


def packed(service: Any) -> Any:
    """The input of `decompress`: a file that this very server wrote."""
    got = infer(service, "compress", [file("picture", png(20, 20))])
    return {**got.json()["outputs"][0], "parameters": {}}


def test_what_goes_wrong_while_a_file_is_read_is_not_laid_on_the_file() -> None:
    whole = serve()
    given = packed(whole)
    whole.close()
    service = serve(runners={"codec_decode": Broken("codec_decode")})
    got = infer(service, "decompress", [given])
    assert got.status == 500 and "secret" not in got.body.decode()
    service.current.graphs["codec_decode"].batcher.close()  # from now on it refuses
    got = infer(service, "decompress", [given])
    assert got.status == 503 and got.headers["retry-after"] == "1"
    service.close()


def test_the_log_tells_why_under_the_id_that_the_client_has(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = serve(runners={"embed_text": Broken()})
    got = infer(service, "graph.embed_text", TOKENS, headers={"x-request-id": "mine-7"})
    assert got.headers["x-request-id"] == "mine-7"
    (told,) = (record for record in caplog.records if record.exc_info)
    assert "mine-7" in told.getMessage()
    service.close()


def test_requests_that_were_given_up_leave_nothing_in_the_queue_of_threads() -> None:
    runner = Slow("codec_encode")
    service = serve(runners={"codec_encode": runner})
    body = json.dumps({"inputs": [file("picture", png(20, 20))]}).encode()
    path = "/v2/models/compress/infer"

    async def leave() -> None:
        busy = [asyncio.create_task(ask(service, "POST", path, body)) for _ in range(2)]
        await asyncio.to_thread(runner.entered.wait, 10)
        gone = asyncio.Event()
        others = [
            asyncio.create_task(ask(service, "POST", path, body, gone=gone.wait()))
            for _ in range(5)
        ]
        await asyncio.sleep(0.05)
        gone.set()
        await asyncio.gather(*others)
        gc.collect()
        held = sum(type(found) is Given for found in gc.get_objects())
        runner.gate.set()
        await asyncio.gather(*busy)
        assert held <= 2  # of the two threads at work

    asyncio.run(leave())
    service.close()


def test_only_so_many_requests_are_at_work() -> None:
    runner = Slow()
    service = serve(limited(requests=2), runners={"embed_text": runner})

    async def three() -> list[int]:
        tasks = [asyncio.create_task(ask(service, "POST", PATH, BODY)) for _ in range(2)]
        await asyncio.to_thread(runner.entered.wait, 10)
        third = await ask(service, "POST", PATH, BODY)
        assert third.headers["retry-after"] == "1"
        runner.gate.set()
        return [third.status, *[(await task).status for task in tasks]]

    assert asyncio.run(three()) == [503, 200, 200]
    service.close()


def test_a_full_queue_is_429() -> None:
    from dataclasses import replace

    from mmprod.serving.settings import Batching

    runner = Slow()
    service = serve(replace(SETTINGS, batching=Batching(queue=1)), runners={"embed_text": runner})

    async def three() -> list[int]:
        first = asyncio.create_task(ask(service, "POST", PATH, BODY))
        await asyncio.to_thread(runner.entered.wait, 10)
        second = asyncio.create_task(ask(service, "POST", PATH, BODY))
        await asyncio.sleep(0.05)
        third = await ask(service, "POST", PATH, BODY)
        runner.gate.set()
        return [third.status, (await first).status, (await second).status]

    assert asyncio.run(three()) == [429, 200, 200]
    service.close()


def test_an_answer_that_takes_too_long_is_504() -> None:
    runner = Slow()
    service = serve(limited(answer_s=0.1), runners={"embed_text": runner})
    assert infer(service, "graph.embed_text", TOKENS).status == 504
    runner.gate.set()
    service.close()


def test_a_client_that_leaves_is_not_computed_for() -> None:
    runner = Slow()
    service = serve(runners={"embed_text": runner})

    async def leave() -> None:
        first = asyncio.create_task(ask(service, "POST", PATH, BODY))
        await asyncio.to_thread(runner.entered.wait, 10)
        gone = asyncio.Event()
        second = asyncio.create_task(ask(service, "POST", PATH, BODY, gone=gone.wait()))
        await asyncio.sleep(0.05)
        gone.set()
        assert (await second).status == 0  # nothing was sent
        runner.gate.set()
        assert (await first).status == 200

    asyncio.run(leave())
    assert runner.calls == 1
    page = get(service, "/metrics").body.decode()
    assert (
        'mmprod_requests_total{model="graph.embed_text",protocol="rest",status="cancelled"} 1.0'
        in page
    )
    assert "mmprod_requests_running 0.0" in page
    service.close()


def test_a_friendly_model_stops_between_its_graphs_when_nobody_waits() -> None:
    runner = Slow("image_to_text")
    step = FakeRunner(SPECS["fusion_step"], answer(SPECS["fusion_step"]))
    service = serve(limited(answer_s=0.1), runners={"image_to_text": runner, "fusion_step": step})
    got = infer(service, "edit", [file("picture", png(16, 16)), text("prompt", "red")])
    assert got.status == 504
    runner.gate.set()
    time.sleep(0.2)
    assert step.calls == 0
    service.close()


def test_a_swap_keeps_what_runs_and_takes_the_new() -> None:
    runner = Slow()
    made = [deploy(runners={"embed_text": runner}, digest="1" * 64), deploy(digest="2" * 64)]
    service = serve(open_anew=lambda: made.pop(0))
    old = service.current

    async def swap() -> tuple[Any, Any]:
        first = asyncio.create_task(ask(service, "POST", PATH, BODY))
        await asyncio.to_thread(runner.entered.wait, 10)
        swapping = asyncio.create_task(service.swap())
        while service.current is old:
            await asyncio.sleep(0.01)
        second = await ask(service, "POST", PATH, BODY)
        assert not runner.closed
        runner.gate.set()
        assert await swapping
        return (await first).json(), second.json()

    first, second = asyncio.run(swap())
    assert first["parameters"]["sha256"] == "1" * 64
    assert second["parameters"]["sha256"] == "2" * 64
    assert runner.closed == 1
    service.close()


def test_what_cannot_be_opened_is_not_swapped_in() -> None:
    made = [deploy()]
    failures = [IntegrityError("a file differs"), OSError("no such disk"), ValueError("?")]

    def open_anew() -> Any:
        if made:
            return made.pop()
        raise failures.pop()

    service = serve(open_anew=open_anew)
    while failures:
        assert asyncio.run(service.swap()) is False
    assert 'swaps_total{result="refused"} 3.0' in get(service, "/metrics").body.decode()
    assert infer(service, "graph.embed_text", TOKENS).status == 200
    service.close()


def test_while_it_drains_answers_close_their_connection() -> None:
    service = serve()
    assert "connection" not in get(service, "/v2").headers
    service.draining = True
    assert get(service, "/v2/health/ready").status == 503
    assert get(service, "/v2/models/embed/ready").status == 503
    assert get(service, "/v2/health/live").status == 200
    got = infer(service, "graph.embed_text", TOKENS)
    assert (got.status, got.headers["connection"]) == (200, "close")
    assert "mmprod_ready 0.0" in get(service, "/metrics").body.decode()
    service.close()


def test_many_clients_share_batches_and_get_their_own_rows() -> None:
    service = serve()
    spec = SPECS["embed_text"]

    async def many() -> list[Any]:
        bodies = [
            json.dumps({"inputs": [tensor("tokens", "INT32", [n] * 8, [1, 8])]}).encode()
            for n in range(60)
        ]
        return await asyncio.gather(*(ask(service, "POST", PATH, body) for body in bodies))

    for n, got in enumerate(asyncio.run(many())):
        wanted = answer(spec)({"tokens": np.full((1, 8), n, np.int32)})["embedding"][0]
        np.testing.assert_array_equal(
            np.array(got.json()["outputs"][0]["data"], np.float32), wanted
        )
    service.close()
