"""Which weights Muon moves, and that its state survives a checkpoint."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from mmprod.config.schema import TrainConfig
from mmprod.errors import ConfigError
from mmprod.training.backend import parameter_groups
from mmprod.training.optimizers import build_optimizers
from mmprod.training.torch_backend import TorchBackend
from tests.training.tiny import ALONE, codec_task, tiny_config


class Net(nn.Module):
    """An embedding, a hidden matrix of 32 x 64, a small head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(64, 32)
        self.hidden = nn.Linear(32, 64)
        self.head = nn.Linear(64, 3)

    def forward(self, ids, target):
        logits = self.head(torch.tanh(self.hidden(self.embed(ids))))
        return {"loss": nn.functional.cross_entropy(logits, target)}


def config(optimizer):
    return TrainConfig(precision="fp32", optimizer=optimizer, lr=1e-2, weight_decay=0.1)


def steps(backend, count):
    generator = torch.Generator().manual_seed(1)
    ids, target = (torch.randint(n, (32,), generator=generator) for n in (64, 3))
    losses = []
    for _ in range(count):
        loss = backend.forward(ids, target)["loss"]
        backend.backward(loss)
        backend.step(1e-2)
        losses.append(loss.item())
    return losses


def test_every_weight_belongs_to_exactly_one_optimizer():
    model = Net()
    optimizers = build_optimizers(model, config("muon"))
    owned = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    assert len(owned) == len({id(p) for p in owned}) == len(list(model.parameters()))
    (muon,) = (o for o in optimizers if isinstance(o, torch.optim.Muon))
    assert [p for g in muon.param_groups for p in g["params"]] == [model.hidden.weight]
    assert len(build_optimizers(model, config("adamw"))) == 1
    assert len(build_optimizers(model, config("auto"))) == 2


def test_muon_with_nothing_to_move_is_refused():
    codec = codec_task(tiny_config()).model
    with pytest.raises(ConfigError, match="muon would move nothing") as caught:
        build_optimizers(codec, config("muon"))
    assert "adamw" in caught.value.hint
    assert len(build_optimizers(codec, config("auto"))) == 1


def test_the_log_says_how_many_matrices_muon_moves(caplog):
    caplog.set_level(logging.INFO)
    build_optimizers(Net(), config("auto"))
    assert "muon moves 1 of 3 matrices" in caplog.text


def test_vectors_do_not_decay():
    matrices, vectors = parameter_groups(Net(), config("adamw"))
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_saved_optimizers_go_on_to_the_bit(optimizer):
    straight = TorchBackend(Net(), config(optimizer), ALONE)
    losses = steps(straight, 6)
    half = TorchBackend(Net(), config(optimizer), ALONE)
    steps(half, 3)
    resumed = TorchBackend(Net(), config(optimizer), ALONE)
    for name, fragment in resumed.fragments().items():
        for field, tensor in half.fragments()[name].fields.items():
            fragment.fields[field].copy_(tensor)
    resumed.restored(half.scalars())
    assert steps(resumed, 3) == losses[3:]
    assert losses[-1] < losses[0]
