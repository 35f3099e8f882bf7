"""A model built in shards has the weights, buffers and random numbers of a plain build."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmprod.models.codec import build_codec
from mmprod.models.fusion import build_fusion
from mmprod.training.distributed import World
from mmprod.training.sharded_build import ShardedBuild, build_for, visiting, whole_copy
from tests.training.tiny import ALONE, tiny_config


def make(stage):
    config = tiny_config()
    torch.manual_seed(3)
    if stage == "codec":
        return build_codec(config.codec)
    return build_fusion(config.fusion, config.dims(270))


@pytest.mark.parametrize("stage", ["codec", "fusion"])
def test_shards_are_those_of_the_plain_build(stage):
    plain = make(stage)
    state = torch.get_rng_state()
    world = 3
    found: dict[str, list[torch.Tensor]] = {}
    for rank in range(world):
        build = ShardedBuild(World(rank, world, torch.device("cpu")))
        with build:
            model = make(stage)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(p.is_meta for p in model.parameters())
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, dict(plain.named_buffers())[name])
        for name, p in model.named_parameters():
            start, values = build.shard(p)
            assert start == sum(len(part) for part in found.get(name, []))
            found.setdefault(name, []).append(values)
    assert found.keys() == dict(plain.named_parameters()).keys()
    for name, p in plain.named_parameters():
        assert torch.equal(torch.cat(found[name]), p.detach().flatten()), name
        assert len(found[name][0]) == -(-p.numel() // world)


def test_no_more_than_a_parameter_and_the_shards_are_alive(monkeypatch):
    build = ShardedBuild(World(0, 4, torch.device("cpu")))
    alive = []

    def note(key, real):
        ShardedBuild._turn(build, key, real)
        alive.append(real.numel() + sum(shard.numel() for shard in build._shards.values()))

    monkeypatch.setattr(build, "_turn", note)
    with build:
        model = make("fusion")
    sizes = [p.numel() for p in model.parameters()]
    assert max(alive) <= max(sizes) + sum(sizes) / 4 + len(sizes)
    assert max(alive) < 0.6 * sum(sizes)


def test_weights_are_loaded_into_shards():
    plain, build = make("codec"), ShardedBuild(ALONE)
    given = {name: torch.randn_like(t) for name, t in plain.state_dict().items() if "conv" in name}
    with build:
        model = make("codec")
        own = model.state_dict()
        for name, tensor in given.items():
            own[name].copy_(tensor)
    for name, p in model.named_parameters():
        expected = given.get(name, dict(plain.named_parameters())[name])
        assert torch.equal(build.shard(p)[1], expected.detach().flatten()), name


def test_the_evaluation_copy_has_the_frozen_weights_and_the_buffers():
    plain, build = make("codec"), ShardedBuild(ALONE)
    with build:
        model = make("codec")
    model.encoder.requires_grad_(False)
    whole = whole_copy(model, build, ALONE)
    assert not whole.training and not any(p.is_meta for p in whole.parameters())
    for (name, p), expected in zip(whole.named_parameters(), plain.parameters(), strict=True):
        assert p.requires_grad == (not name.startswith("encoder."))
        assert p.requires_grad or torch.equal(p, expected), name
    for (name, buffer), expected in zip(whole.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, expected), name


def test_only_zero_3_builds_in_shards():
    for stage in range(4):
        raw = {"zero_optimization": {"stage": stage}}
        assert isinstance(build_for(raw, ALONE), ShardedBuild) == (stage == 3)
    assert not isinstance(build_for(None, ALONE), ShardedBuild)


def test_a_visiting_model_goes_where_the_buffers_are_and_home():
    model, live = nn.Linear(2, 2, device="meta"), nn.BatchNorm1d(2, device="meta")
    with visiting(model, live):
        assert all(p.is_meta for p in model.parameters())
    whole = nn.Linear(2, 2)
    with visiting(whole, nn.BatchNorm1d(2)):
        assert not whole.weight.is_meta
    with pytest.raises(NotImplementedError, match="meta"), visiting(whole, live):
        assert all(p.is_meta for p in whole.parameters())


class Reads(nn.Linear):
    def reset_parameters(self):
        super().reset_parameters()
        self.bias.data.fill_(float(self.weight.norm()))


class Returns(nn.Linear):
    def reset_parameters(self):
        super().reset_parameters()
        self.weight.data.mul_(2)


@pytest.mark.parametrize(("module", "message"), [(Reads, "reads"), (Returns, "mul_ changes")])
def test_initialisation_that_needs_a_whole_parameter_is_refused(module, message):
    with pytest.raises(NotImplementedError, match=message), ShardedBuild(ALONE):
        module(4, 4)
