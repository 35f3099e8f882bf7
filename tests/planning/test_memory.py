"""Bytes by kind: ZeRO's rules, what is beside the model, what is impossible."""

from __future__ import annotations

import pytest

from mmprod.config.load import load_config
from mmprod.models.codec import build_codec
from mmprod.models.discriminator import Discriminator
from mmprod.models.fusion import build_fusion
from mmprod.planning.memory import Layout, memory_of
from mmprod.planning.sizes import Sizes, sizes_of

P = 1_000_000


def sizes(**changes: int) -> Sizes:
    """A model of a million parameters and nothing beside it."""
    values = {
        "trained": P, "frozen": 0, "largest": 1000, "tensors": 10, "buffer_bytes": 0,
        "saved_buffer_bytes": 0, "discriminator": 0, "perceptual": 0, "sampler_bytes": 0,
        "length": 1, "group": 1, "counted": 0, "pooled": 0,
    }  # fmt: skip
    return Sizes(**(values | changes))


@pytest.mark.parametrize("stage", ["codec", "fusion"])
def test_parameters_are_those_of_the_real_models(stage: str) -> None:
    config = load_config("tiny")
    real = {
        "codec": lambda: build_codec(config.codec),
        "fusion": lambda: build_fusion(config.fusion, config.dims(config.data.vocabulary)),
    }
    found = sizes_of(config, stage)
    assert found.parameters == sum(p.numel() for p in real[stage]().parameters())
    assert found.frozen == 0


def test_frozen_parts_are_counted_apart() -> None:
    config = load_config(
        "tiny", ['codec_train.freeze=["encoder"]', 'codec_train.init_from="somewhere"']
    )
    whole, found = sizes_of(load_config("tiny"), "codec"), sizes_of(config, "codec")
    assert found.parameters == whole.parameters
    assert 0 < found.frozen < found.parameters
    weights = memory_of(found, Layout(1, world=2)).device["weights"]
    assert weights == 4 * found.parameters
    assert memory_of(found, Layout(1, world=2)).device["masters"] == 4 * -(-found.trained // 2)


@pytest.mark.parametrize(
    ("stage", "weights", "world", "per_parameter"),
    [
        (None, "fp32", 1, 4 + 8 + 4),
        (0, "fp32", 4, 4 + 8 + 4),
        (1, "fp32", 1, 4 + 4 + 8 + 4),
        (1, "fp32", 4, 4 + 16 / 4),
        (1, "bf16", 4, 2 + 16 / 4),
        (2, "fp16", 2, 2 + 16 / 2),
        (3, "fp32", 4, (4 + 16 + 4) / 4),
        (3, "bf16", 2, (2 + 16 + 2) / 2),
    ],
)
def test_bytes_at_rest(stage: int | None, weights: str, world: int, per_parameter: float) -> None:
    memory = memory_of(sizes(), Layout(stage, weights, world=world, bucket=0))  # type: ignore[arg-type]
    assert memory.rest == per_parameter * P


def test_every_stage_peaks_lower_than_the_one_before_on_many_ranks() -> None:
    peaks = [memory_of(sizes(), Layout(zero, world=64, bucket=1000)).peak() for zero in (0, 1, 2)]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 3
    rest = [memory_of(sizes(), Layout(z, world=64, bucket=0)).rest for z in range(4)]
    assert rest[3] < rest[2] == rest[1] < rest[0]


def test_the_higher_of_two_peaks_counts() -> None:
    memory = memory_of(sizes(), Layout(1, world=1, bucket=0))
    assert memory.peak(0) == memory.rest + (4 + 4 + 8) * P  # the update
    assert memory.peak(100 * P) == memory.rest + (4 + 4 + 100) * P  # the backward pass


def test_offload_moves_bytes_to_the_host() -> None:
    plain = memory_of(sizes(), Layout(3, "bf16", world=4))
    optimizer = memory_of(sizes(), Layout(3, "bf16", "optimizer", world=4))
    both = memory_of(sizes(), Layout(3, "bf16", "optimizer+param", world=4))
    assert plain.host_rest == 0
    assert plain.rest == optimizer.rest + optimizer.host_rest == both.rest + both.host_rest
    assert optimizer.host_rest == 16 * P // 4 and both.host_rest == 18 * P // 4
    assert both.peak() < optimizer.peak() < plain.peak()


def test_what_deepspeed_cannot_do_is_not_planned() -> None:
    assert not Layout(0, "bf16").possible
    assert not Layout(0, offload="optimizer").possible
    assert not Layout(2, offload="optimizer+param").possible
    assert not Layout(None, world=2).possible
    assert Layout(3, "fp16", "optimizer+param").possible


def test_networks_beside_the_model_are_whole_on_every_rank() -> None:
    base = load_config("base")
    assert base.codec.gan_weight and not base.codec.perceptual
    none = base.model_copy(update={"codec": base.codec.model_copy(update={"gan_weight": 0.0})})
    judge = sum(p.numel() for p in Discriminator().parameters())
    for world in (1, 64):
        layout = Layout(3, world=world)
        more = memory_of(sizes_of(base, "codec"), layout).rest
        assert more == memory_of(sizes_of(none, "codec"), layout).rest + 16 * judge
    codec = build_codec(load_config("tiny").codec)
    held = sum(t.numel() * t.element_size() for t in (*codec.parameters(), *codec.buffers()))
    assert memory_of(sizes_of(load_config("tiny"), "fusion"), Layout(1)).device["codec"] == held
