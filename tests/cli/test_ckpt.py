"""`mmprod ckpt`: what is there, whether it is whole, and taking weights and state out of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .conftest import Mmprod


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run to damage."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def damage(step: Path) -> Path:
    state = step / "state-00000.safetensors"
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    return state


def test_ls_says_who_wrote_each_step_and_when(mmprod: Mmprod, run: Path) -> None:
    found = mmprod("ckpt", "ls", run, "--json").json()["checkpoints"]
    assert {(c["world"], c["placement"], c["complete"]) for c in found} == {(1, "torch", True)}
    assert all(c["saved"].endswith("+00:00") for c in found)
    table = mmprod("ckpt", "ls", run / "codec").out
    assert "1 x torch" in table
    assert "fusion" not in table


def test_ls_shows_what_it_cannot_read(mmprod: Mmprod, copy: Path) -> None:
    folder = copy / "codec" / "checkpoints"
    (folder / "step-00000003" / "manifest.json").write_text("{")
    (folder / "step-00000009").mkdir()
    found = mmprod("ckpt", "ls", copy, "--json").json()["checkpoints"]
    assert [(c["step"], c["complete"], "world" in c) for c in found if c["stage"] == "codec"] == [
        (2, True, True),
        (3, True, False),
        (9, False, False),
    ]


def test_verify_looks_at_all_and_names_the_damaged_one(mmprod: Mmprod, copy: Path) -> None:
    step = copy / "codec" / "checkpoints" / "step-00000002"
    assert mmprod("ckpt", "verify", step).code == 0
    state = damage(step)
    result = mmprod("ckpt", "verify", copy)
    assert result.code == 4
    assert str(state) in result.err
    assert "codec 2: fail" in result.err
    assert "fusion 3: ok" in result.err
    assert mmprod("ckpt", "verify", copy / "fusion").code == 0


def test_verify_fails_where_nothing_was_verified(mmprod: Mmprod, copy: Path) -> None:
    folder = copy / "codec" / "checkpoints"
    (folder / "step-00000009").mkdir()
    assert mmprod("ckpt", "verify", copy).code == 0, "an interrupted save is no damage"
    assert mmprod("ckpt", "verify", folder / "step-00000009").code == 4
    (folder / "best").write_text("step-00000009\n")
    result = mmprod("ckpt", "verify", copy)
    assert result.code == 4
    assert "names step-00000009, which is not complete" in result.err
    for manifest in folder.glob("*/manifest.json"):
        manifest.unlink()
    result = mmprod("ckpt", "verify", copy / "codec")
    assert result.code == 4


def test_what_a_running_job_deletes_meanwhile_is_no_damage(
    mmprod: Mmprod, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmprod.checkpoint import consolidate, steps

    step = copy / "codec" / "checkpoints" / "step-00000002"
    open_step, read = consolidate.open_step, steps.read_manifest

    def prune(path: Path) -> None:
        if path == step and step.exists():
            shutil.rmtree(step)

    aside = Path(shutil.copytree(step, copy.parent / "aside"))
    monkeypatch.setattr(consolidate, "open_step", lambda p: (prune(p), open_step(p))[1])
    result = mmprod("ckpt", "verify", copy)
    assert result.code == 0, result.err
    assert "step-00000002 was deleted meanwhile" in result.err
    shutil.copytree(aside, step)
    monkeypatch.setattr(steps, "read_manifest", lambda p: (prune(p), read(p))[1])
    result = mmprod("ckpt", "ls", copy, "--json")
    assert result.code == 0
    assert "step-00000002 was deleted meanwhile" in result.err
    assert [c["step"] for c in result.json()["checkpoints"] if c["stage"] == "codec"] == [3]


def test_consolidated_weights_are_a_start_for_a_run(
    mmprod: Mmprod, run: Path, job: Path, tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    result = mmprod(
        "ckpt", "consolidate", run, "--model", "codec", "--step", "best", "--out", file, "--json"
    )
    assert result.code == 0
    assert result.json()["bytes"] == file.stat().st_size
    expected, found = load_file(run / "codec" / "model.safetensors"), load_file(file)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    started = mmprod(
        "train", "--config", job, "--out", tmp_path / "next", "--model", "codec", "-q",
        "-o", f"codec_train.init_from={file}",
    )  # fmt: skip
    assert started.code == 0, started.err
    tensors = json.loads((tmp_path / "next" / "codec" / "init.json").read_text())["tensors"]
    assert {tensor["verdict"] for tensor in tensors} == {"loaded"}


def test_a_damaged_step_gives_no_weights(mmprod: Mmprod, copy: Path, tmp_path: Path) -> None:
    step = copy / "codec" / "checkpoints" / "step-00000003"
    damage(step)
    result = mmprod("ckpt", "consolidate", step, "--out", tmp_path / "x.safetensors")
    assert result.code == 4
    assert not (tmp_path / "x.safetensors").exists()


def test_which_step_is_meant_must_be_said(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    both = mmprod("ckpt", "consolidate", run, "--out", file)
    assert both.code == 2
    assert "--model" in both.err
    other = mmprod("ckpt", "consolidate", run / "codec", "--step", "77", "--out", file)
    assert other.code == 2
    assert "one of: 2, 3" in other.err
    assert mmprod("ckpt", "consolidate", tmp_path, "--out", file).code == 2


@pytest.mark.parametrize("form", ["pytorch", "deepspeed-universal"])
def test_convert_writes_a_new_folder(mmprod: Mmprod, run: Path, tmp_path: Path, form: str) -> None:
    command = ("ckpt", "convert", run / "codec", "--to", form, "--out", tmp_path / "out")
    result = mmprod(*command, "--json")
    assert result.code == 0, result.err
    assert all(Path(file).exists() for file in result.json()["files"])
    again = mmprod(*command)
    assert again.code == 2
    assert "is there already" in again.err
