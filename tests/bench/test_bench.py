"""The bench measures what it says, on small sizes; peers are not needed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from mmprod.models.quantizers.book import Rules
from mmprod.models.quantizers.spherical import SphericalQuantizer
from tools.bench import __main__ as bench
from tools.bench import codec, measure, quantizers
from tools.bench.machine import described, machine
from tools.bench.measure import Row, best_times, faster, peak_above_baseline


def test_times_are_the_best_of_the_rounds_in_turn() -> None:
    calls: list[str] = []

    def burn(name: str, seconds: float) -> None:
        calls.append(name)
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = best_times({"a": lambda: burn("a", 0.01), "b": lambda: burn("b", 0.03)}, rounds=2)
    finally:
        torch.set_num_threads(before)
    assert calls == ["a", "b"] * 3
    assert 0.01 <= found["a"] < 0.02 < 0.03 <= found["b"]


def test_memory_is_the_peak_not_what_stays() -> None:
    before = torch.zeros(1)

    def passing() -> None:
        before.add_(torch.ones(32 * 2**18).sum())  # 32 MiB for a moment

    assert 30 < peak_above_baseline(passing) < 48
    assert peak_above_baseline(lambda: None) < 4


@pytest.mark.parametrize(("theirs", "verdict"), [(3.1, "pass"), (2.9, "MISS")])
def test_a_row_is_judged_by_its_aim(theirs: float, verdict: str) -> None:
    row = faster("work", 1.0, "peer", theirs, at_least=3)
    assert row.times == pytest.approx(theirs)
    assert bench.table([row])[1].endswith(verdict)
    assert not bench.table([faster("work", 1.0, "peer", theirs)])[1].endswith(verdict)


def test_our_quantizers_run_and_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizers, "CODES", 32)
    monkeypatch.setattr(quantizers, "SHAPE", (4, quantizers.DIM, 4, 4))
    for build in (quantizers.spherical, quantizers.euclid):
        build()()
    quantizer = SphericalQuantizer(32, quantizers.DIM, Rules(0.9, True, unit=True), commitment=0.25)
    before = quantizer.book.codes.clone()
    quantizers._ours(quantizer)()
    assert int(quantizer.updates) == 1 and not torch.equal(quantizer.book.codes, before)


def test_a_quantizer_without_gradient_is_an_error() -> None:
    step = quantizers._step(lambda z: (z.detach(), z.new_zeros((), requires_grad=True)), int)
    with pytest.raises(RuntimeError, match="no gradient"):
        step()


def test_multiply_adds_are_those_of_the_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 5 * 5, 7))
    found = codec.multiply_adds(model, lambda: model(torch.zeros(1, 3, 5, 5)))
    assert found == 25 * 4 * 3 * 9 + 100 * 7


def test_our_codec_is_not_smaller_than_the_peer() -> None:
    pytest.importorskip("diffusers", reason="the peer is not installed: extra `bench`")
    (own, own_work), (peer, peer_work) = codec.sizes()
    assert own >= peer and own_work >= peer_work
    assert own_work <= 1.15 * peer_work


def test_without_peers_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "PEERS", {"a_module_nobody_has": "a-package"})
    assert bench.main([]) == bench.MISSING_PEERS
    err = capsys.readouterr().err
    assert "a-package" in err and 'pip install -c constraints.txt -e ".[bench]"' in err


def test_json_has_machine_and_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Row("work", 1.0, "peer", 2.0, "ms", ">= 3 x", False)
    monkeypatch.setattr(bench, "PEERS", {})
    monkeypatch.setattr(bench, "measured", lambda options: ([row], ["a note"]))
    assert bench.main(["--json", "--threads", str(torch.get_num_threads())]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["met"] is False and found["rows"][0]["times"] == 2.0
    assert found["notes"] == ["a note"] and found["machine"]["torch"] == torch.__version__


def test_a_busy_machine_is_named() -> None:
    found = machine()
    assert any("not idle" in line for line in described(found | {"load": 3.5}))
    assert not any("not idle" in line for line in described(found | {"load": 0.2}))


def test_an_unknown_figure_of_the_process_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="VmNothing"):
        measure._status("VmNothing")


def test_blocks_of_both_loops_are_timed_in_turn(tmp_path: Path) -> None:
    from mmprod.training.loop import train_stage
    from tests.training.tiny import make_job, tiny_config
    from tools.bench import loop

    made: list[int] = []

    class Other:
        def run(self) -> None:
            made.append(1)
            time.sleep(0.05)

    job = make_job(tiny_config(steps=3 * loop.STEPS), tmp_path)
    clock = loop.hold_after_blocks(job.task, Other())  # type: ignore[arg-type]
    train_stage(job)
    assert len(made) == 3
    assert len(clock.ours) == len(clock.bare) == 2
    assert all(0.05 <= wall < 0.5 for wall, _ in clock.bare)
    assert clock.step_ms("bare") == pytest.approx(50 / loop.STEPS, rel=0.5)
    assert loop.Clock([(2.0, 1.0)], [(1.0, 1.0)]).ratio == 2.0


def test_pictures_of_a_folder_become_what_was_drawn(tmp_path: Path) -> None:
    from mmprod.data.avatars import prepare_avatars
    from mmprod.data.folder import prepare_folder
    from mmprod.data.store import open_split
    from tools.bench import waiting

    prepare_avatars(tmp_path / "drawn", count=40, size=16, seed=0, variants=1)
    waiting.write_folder(tmp_path / "drawn", tmp_path / "pictures")
    prepare_folder(tmp_path / "pictures", tmp_path / "data", size=16, seed=0)
    assert len(open_split(tmp_path / "data", "train")) > 20
