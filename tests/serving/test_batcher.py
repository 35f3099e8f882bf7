"""Requests that share a batch: same rows, bounded queue, cancellation, closing."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import numpy as np
import pytest

from mmprod.errors import ConfigError
from mmprod.graphs.runner import Array, example_inputs
from mmprod.serving.batcher import Batch, Batcher
from mmprod.serving.refusal import Refused
from mmprod.serving.settings import Batching
from tests.parity.answers import FakeRunner
from tests.serving.fakes import SPECS, answer

SPEC = SPECS["embed_text"]


class Gated(FakeRunner):
    """Runs when it is let."""

    def __init__(self) -> None:
        super().__init__(SPEC, answer(SPEC))
        self.gate = threading.Event()
        self.rows: list[int] = []

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert self.gate.wait(10)
        self.rows.append(len(inputs["tokens"]))
        return super().__call__(inputs)


def until(condition: object, seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.002)
    assert condition()  # type: ignore[operator]


def test_each_request_gets_its_own_rows_and_batches_form_while_one_runs() -> None:
    runner, seen = Gated(), list[Batch]()
    batcher = Batcher(runner, Batching(), seen.append)
    inputs = [example_inputs(SPEC, rows, seed) for seed, rows in enumerate((1, 2, 3, 4, 5, 6))]
    first = batcher.submit(inputs[0])
    until(lambda: batcher.waiting == 0)
    others = [batcher.submit(one) for one in inputs[1:]]
    runner.gate.set()
    for future, given in zip([first, *others], inputs, strict=True):
        found = future.result(10).outputs["embedding"]
        np.testing.assert_array_equal(found, answer(SPEC)(given)["embedding"])
    batcher.close()
    assert runner.rows == [1, 14, 6]  # 2 + 3 + 4 + 5 fit into 16, the next 6 do not
    assert [batch.rows for batch in seen] == [1, 14, 6]
    assert runner.closed == 1


def test_a_request_waits_for_company_up_to_its_deadline() -> None:
    runner = Gated()
    runner.gate.set()
    batcher = Batcher(runner, Batching(wait_s=5, waits={"embed_text": 0.3}), lambda batch: None)
    start = time.monotonic()
    futures = [batcher.submit(example_inputs(SPEC, 1, seed)) for seed in range(3)]
    done = [future.result(10) for future in futures]
    assert 0.25 < time.monotonic() - start < 3
    assert runner.rows == [3]
    assert done[0].queue_s >= 0.25
    batcher.close()


def test_a_full_batch_does_not_wait() -> None:
    runner = Gated()
    runner.gate.set()
    batcher = Batcher(runner, Batching(wait_s=10), lambda batch: None)
    start = time.monotonic()
    batcher.submit(example_inputs(SPEC, SPEC.dims[0].max, 0)).result(10)
    assert time.monotonic() - start < 5
    batcher.close()


def test_without_batching_each_runs_alone() -> None:
    runner = Gated()
    batcher = Batcher(runner, Batching(together=False), lambda batch: None)
    futures = [batcher.submit(example_inputs(SPEC, rows, 0)) for rows in (1, 2, 3)]
    runner.gate.set()
    assert [len(future.result(10).outputs["embedding"]) for future in futures] == [1, 2, 3]
    assert runner.rows == [1, 2, 3]
    batcher.close()


def test_the_queue_is_bounded() -> None:
    runner = Gated()
    batcher = Batcher(runner, Batching(queue=2), lambda batch: None)
    first = batcher.submit(example_inputs(SPEC, 1, 0))
    until(lambda: batcher.waiting == 0)
    waiting = [batcher.submit(example_inputs(SPEC, 1, 0)) for _ in range(2)]
    with pytest.raises(Refused) as caught:
        batcher.submit(example_inputs(SPEC, 1, 0))
    assert caught.value.status == 429
    assert caught.value.retry_after_s >= 1
    runner.gate.set()
    for future in (first, *waiting):
        future.result(10)
    batcher.close()


def test_who_was_cancelled_is_left_out() -> None:
    runner = Gated()
    batcher = Batcher(runner, Batching(), lambda batch: None)
    first = batcher.submit(example_inputs(SPEC, 1, 0))
    until(lambda: batcher.waiting == 0)
    second, third = (batcher.submit(example_inputs(SPEC, 1, 0)) for _ in range(2))
    assert second.cancel()
    runner.gate.set()
    first.result(10), third.result(10)
    assert runner.rows == [1, 1]
    batcher.close()


def test_wrong_inputs_are_refused_before_they_queue() -> None:
    batcher = Batcher(Gated(), Batching(), lambda batch: None)
    for inputs in (
        {},
        {"tokens": np.zeros((1, 7), np.int32)},
        {"tokens": np.zeros((17, 8), np.int32)},
        {"tokens": np.full((1, 8), 300, np.int32)},
    ):
        with pytest.raises(ConfigError):
            batcher.submit(inputs)
    assert batcher.waiting == 0
    batcher.close()


def test_a_failure_reaches_every_request_and_the_next_batch_runs() -> None:
    runner = FakeRunner(SPEC, answer(SPEC))

    def fail(inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise ValueError("broken")

    works, runner.function = runner.function, fail
    batcher = Batcher(runner, Batching(), lambda batch: None)
    with pytest.raises(ValueError, match="broken"):
        batcher.submit(example_inputs(SPEC, 1, 0)).result(10)
    runner.function = works
    batcher.submit(example_inputs(SPEC, 1, 0)).result(10)
    batcher.close()


def test_closing_answers_what_waits_and_takes_no_more() -> None:
    runner = Gated()
    batcher = Batcher(runner, Batching(), lambda batch: None)
    futures = [batcher.submit(example_inputs(SPEC, 1, 0)) for _ in range(3)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    runner.gate.set()
    closing.join(10)
    assert all(future.result(0) for future in futures)
    with pytest.raises(Refused) as caught:
        batcher.submit(example_inputs(SPEC, 1, 0))
    assert caught.value.status == 503


def test_who_was_cancelled_frees_a_place_in_the_queue() -> None:
    runner = Gated()
    batcher = Batcher(runner, Batching(queue=1), lambda batch: None)
    first = batcher.submit(example_inputs(SPEC, 1, 0))
    until(lambda: batcher.waiting == 0)
    assert batcher.submit(example_inputs(SPEC, 1, 0)).cancel()
    assert batcher.waiting == 0
    second = batcher.submit(example_inputs(SPEC, 1, 0))
    runner.gate.set()
    first.result(10), second.result(10)
    batcher.close()


def test_the_only_one_that_waits_for_company_may_leave() -> None:
    runner = Gated()
    runner.gate.set()
    batcher = Batcher(runner, Batching(wait_s=0.05), lambda batch: None)
    for _ in range(5):
        assert batcher.submit(example_inputs(SPEC, 1, 0)).cancel()
        time.sleep(0.02)
    time.sleep(0.1)
    batcher.submit(example_inputs(SPEC, 1, 0)).result(10)
    assert runner.rows == [1]
    batcher.close()


def test_a_request_that_breaks_a_batch_fails_alone() -> None:
    class Picky(Gated):
        def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            found = super().__call__(inputs)
            if (inputs["tokens"] == 13).any():
                raise ValueError("unlucky")
            return found

    runner = Picky()
    batcher = Batcher(runner, Batching(), lambda batch: None)
    first = batcher.submit(example_inputs(SPEC, 1, 0))
    until(lambda: batcher.waiting == 0)
    inputs = [{"tokens": np.full((2, 8), n, np.int32)} for n in (12, 13, 14)]
    futures = [batcher.submit(one) for one in inputs]
    runner.gate.set()
    assert first.result(10)
    with pytest.raises(ValueError, match="unlucky"):
        futures[1].result(10)
    for n in (0, 2):
        found = futures[n].result(10).outputs["embedding"]
        np.testing.assert_array_equal(found, answer(SPEC)(inputs[n])["embedding"])
    assert runner.rows == [1, 6, 2, 2, 2]
    batcher.close()
