"""Bytes of a checkpoint against a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprod.planning.memory import Layout, memory_of
from mmprod.planning.sizes import sizes_of
from mmprod.planning.storage import storage_of
from mmprod.training.loop import train_stage
from tests.training.tiny import make_job, tiny_config, with_codec


def payload(path: Path) -> int:
    """Bytes of the tensors of a safetensors file: all but the header and its length."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return path.stat().st_size - 8 - header


@pytest.mark.parametrize(
    ("stage", "codec"),
    [("codec", {}), ("codec", {"loss": "natural", "gan_weight": 0.1}), ("fusion", {})],
)
def test_a_checkpoint_has_the_planned_bytes_and_files(
    tmp_path: Path, stage: str, codec: dict[str, object]
) -> None:
    config = with_codec(tiny_config(steps=2, warmup=1, save_every=2, eval_every=2), **codec)
    job = make_job(config, tmp_path, stage=stage)
    train_stage(job)
    (folder,) = tmp_path.glob("checkpoints/step-*")
    files = list(folder.iterdir())
    if stage == "fusion":  # the tokenizer came out smaller than the limit that a plan takes
        ids = job.task.model.dims.vocabulary
        data = config.data.model_copy(update={"vocabulary": ids})
        config = config.model_copy(update={"data": data})
    plan = storage_of(sizes_of(config, stage), None, 1)
    assert plan.files == len(files)
    found = sum(payload(path) for path in files if path.suffix == ".safetensors")
    assert plan.bytes == pytest.approx(found, abs=100)  # counters of the optimizer


def test_muon_keeps_one_moment_of_a_matrix_where_it_moves_it(tmp_path: Path) -> None:
    config = tiny_config(steps=2, warmup=1, save_every=2, eval_every=2, optimizer="muon")
    fusion = config.fusion.model_copy(update={"width": 32})
    config = config.model_copy(update={"fusion": fusion})
    job = make_job(config, tmp_path, stage="fusion")
    train_stage(job)
    (folder,) = tmp_path.glob("checkpoints/step-*")
    ids = job.task.model.dims.vocabulary
    data = config.data.model_copy(update={"vocabulary": ids})
    sizes = sizes_of(config.model_copy(update={"data": data}), "fusion")
    plan, zero = storage_of(sizes, None, 1), storage_of(sizes, 0, 1)
    assert sizes.one_moment and zero.bytes - plan.bytes == 4 * sizes.one_moment
    assert plan.bytes == pytest.approx(sum(map(payload, folder.glob("*.safetensors"))), abs=300)
    moments = memory_of(sizes, Layout(None)).device["moments"]
    assert moments == memory_of(sizes, Layout(0)).device["moments"] - 4 * sizes.one_moment
