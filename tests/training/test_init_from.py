"""Which tensors of foreign weights a stage starts from: parameters that fit, buffers with care."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from mmprod.errors import ConfigError, IntegrityError
from mmprod.training.init_from import start_from
from tests.training.tiny import codec_task, fusion_task, tiny_config


def state(task):
    return {name: tensor.clone() for name, tensor in task.core(task.model).state_dict().items()}


def foreign(task):
    """Other values in every tensor, as if trained on something else."""
    return {name: tensor + 1 for name, tensor in state(task).items()}


def write(tmp_path, tensors):
    path = tmp_path / "start.safetensors"
    save_file(tensors, path)
    return path


def test_a_fusion_model_keeps_the_code_vectors_of_its_own_codec(tmp_path):
    task = fusion_task(tiny_config())
    before, given = state(task), foreign(task)
    start_from(task, write(tmp_path, given))
    after = state(task)
    assert before["image.features"].any()
    assert torch.equal(after["image.features"], before["image.features"])
    parameters = {name for name, _ in task.core(task.model).named_parameters()}
    assert all(torch.equal(after[name], given[name]) for name in parameters)


def test_a_codec_takes_the_whole_codebook_state(tmp_path):
    task = codec_task(tiny_config())
    given = foreign(task)
    start_from(task, write(tmp_path, given))
    assert all(torch.equal(tensor, given[name]) for name, tensor in state(task).items())


def test_a_codec_takes_no_part_of_a_codebook_of_another_size(tmp_path):
    """Else `updates` would say that the fresh codes were initialised from data."""
    task = codec_task(tiny_config())
    before, given = state(task), foreign(task)
    for name in ("codes", "sums", "idle", "rate"):
        given[f"quantizer.{name}"] = torch.cat([given[f"quantizer.{name}"]] * 2)
    start_from(task, write(tmp_path, given))
    after = state(task)
    buffers = {name for name, _ in task.model.named_buffers()}
    assert "quantizer.updates" in buffers
    assert all(torch.equal(after[name], before[name]) for name in buffers)
    assert all(torch.equal(after[name], given[name]) for name in after.keys() - buffers)


def test_a_file_that_is_no_weights_is_an_integrity_error(tmp_path):
    path = tmp_path / "start.safetensors"
    path.write_bytes(b"garbage")
    with pytest.raises(IntegrityError, match="cannot be read"):
        start_from(codec_task(tiny_config()), path)


def test_weights_of_another_model_are_refused(tmp_path):
    given = {"quantizer.updates": torch.zeros((), dtype=torch.int64), "other": torch.zeros(3)}
    with pytest.raises(ConfigError, match="no tensor"):
        start_from(codec_task(tiny_config()), write(tmp_path, given))
