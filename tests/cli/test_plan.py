"""The dry run: its figures are those of the real models and of ZeRO's rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprod.cli.plan import plan, rank_bytes, training_samples
from mmprod.config.load import load_config
from mmprod.models.codec import build_codec
from mmprod.models.discriminator import Discriminator
from mmprod.models.fusion import build_fusion
from mmprod.models.perceptual import STAGES

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


def test_networks_beside_the_codec_are_counted_on_every_rank() -> None:
    config = load_config("base")
    judge = sum(p.numel() for p in Discriminator().parameters())
    vgg = 14_714_688 + sum(widths[-1] for widths in STAGES)
    without = config.model_copy(
        update={"codec": config.codec.model_copy(update={"gan_weight": 0.0, "perceptual": ""})}
    )
    both = config.model_copy(
        update={"codec": config.codec.model_copy(update={"perceptual": "vgg16.pth"})}
    )
    assert config.codec.gan_weight and not config.codec.perceptual
    plain, gan, all_of_it = (plan(c)[0] for c in (without, config, both))
    for zero in range(4):
        for world, size in plain.rank_bytes[zero].items():
            assert gan.rank_bytes[zero][world] == size + 16 * judge
            assert all_of_it.rank_bytes[zero][world] == size + 16 * judge + 4 * vgg
    assert gan.checkpoint_bytes == plain.checkpoint_bytes + 12 * judge == all_of_it.checkpoint_bytes
