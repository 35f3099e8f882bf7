"""The dry run: its figures are those of the real models and of ZeRO's rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprod.cli.plan import plan, rank_bytes, training_samples
from mmprod.config.load import load_config
from mmprod.models.codec import build_codec
from mmprod.models.fusion import build_fusion

from .conftest import Mmprod


def test_parameters_are_those_of_the_real_models() -> None:
    config = load_config("tiny")
    found = {p.stage: p.parameters for p in plan(config)}
    codec, fusion = (
        build_codec(config.codec),
        build_fusion(config.fusion, config.dims(config.data.vocabulary)),
    )
    assert found["codec"] == sum(p.numel() for p in codec.parameters())
    assert found["fusion"] == sum(p.numel() for p in fusion.parameters())


def test_zero_shards_more_with_every_stage() -> None:
    alone = [rank_bytes(1000, zero, 1) for zero in range(4)]
    assert set(alone) == {20_000}  # weights 4, gradients 4, moments 8, averages 4 bytes each
    shared = [rank_bytes(1000, zero, 4) for zero in range(4)]
    assert shared == [20_000, 14_000, 11_000, 5_000]


def test_dry_run_trains_nothing(
    mmprod: Mmprod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = mmprod("train", "--dry-run", "--config", "large", "--nproc", 3, "--json").json()
    assert list(tmp_path.iterdir()) == []
    fusion = data["stages"][1]
    assert fusion["parameters"] > 500_000_000
    assert set(fusion["rank_bytes"]["3"]) == {"1", "2", "3", "8", "64"}
    assert data["samples"] is None
    text = mmprod("train", "--dry-run", "--config", "large").out
    assert "unknown until" in text


def test_samples_are_counted_where_data_is_prepared(run: Path) -> None:
    drawn = load_config("tiny", ["data.count=100"])
    assert training_samples(drawn) == (90, "to be drawn")
    prepared = load_config("tiny", [f"data.path={run / 'data'}"])
    assert training_samples(prepared)[0] == 36
