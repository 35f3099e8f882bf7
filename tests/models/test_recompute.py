"""Activation checkpointing: the same bits, less kept for the backward pass, none in evaluation."""

from __future__ import annotations

import copy

import pytest
import torch

from mmprod.models.recompute import recompute_activations
from tests.training.tiny import codec_task, fusion_task, tiny_config


def step(task, model):
    """Loss and gradients of one micro-batch, and the bytes kept for the backward pass."""
    from mmprod.training.shares import Shares

    share = Shares(0, 16, 0, 1, 1).of(0, task.size, task.weights)[0]
    batch = task.batch(share)
    kept: dict[int, int] = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(*batch)["loss"]
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return loss.detach(), gradients, sum(kept.values())


@pytest.mark.parametrize("make", [codec_task, fusion_task])
def test_gradients_are_equal_to_the_bit_and_less_is_kept(make):
    task = make(tiny_config())
    plain, checkpointed = task.model, copy.deepcopy(task.model)
    assert recompute_activations(checkpointed) > 1
    loss, gradients, kept = step(task, plain.train())
    other_loss, other_gradients, other_kept = step(task, checkpointed.train())
    assert torch.equal(loss, other_loss)
    assert gradients.keys() == other_gradients.keys()
    assert all(torch.equal(gradients[name], other_gradients[name]) for name in gradients)
    assert other_kept < 0.7 * kept


def test_evaluation_does_not_go_through_a_checkpoint(monkeypatch):
    task = codec_task(tiny_config())
    pixels = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    expected = task.model.eval().encode(pixels)
    recompute_activations(task.model)
    monkeypatch.setattr("mmprod.models.recompute.checkpoint", lambda *_, **__: 1 / 0)
    assert torch.equal(task.model.encode(pixels), expected)
    with pytest.raises(ZeroDivisionError):
        task.model.train()(pixels)
