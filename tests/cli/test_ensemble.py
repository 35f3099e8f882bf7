"""`mmprod generate --ensemble`: several runs, one picture."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from mmprod.checkpoint import open_run
from mmprod.checkpoint.run import write_run
from mmprod.manifest import FileEntry

from .conftest import Mmprod


def changed(run: Path, folder: Path, name: str) -> Path:
    """A copy of a run with one file changed, signed anew."""
    other = shutil.copytree(run, folder)
    path = other / name
    if path.suffix == ".safetensors":
        tensors = {key: value * 1.5 for key, value in load_file(path).items()}
        save_file(tensors, path)
    else:
        path.write_text(path.read_text() + "\n")
    opened = open_run(run)
    files = tuple(FileEntry.of(other, other / entry.path) for entry in opened.files)
    write_run(replace(opened, root=other, files=files))
    return other


def drawn(mmprod: Mmprod, out: Path, *arguments: object) -> np.ndarray:
    result = mmprod("generate", *arguments, "a hat", "-n", 9, "--out", out, "--json")
    assert result.code == 0, result.err
    return np.asarray(Image.open(out))


def test_a_run_together_with_itself_draws_what_it_draws_alone(
    mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    """The loop on the host, with guidance, over more samples than a batch of the graph."""
    alone = drawn(mmprod, tmp_path / "alone.png", run)
    np.testing.assert_array_equal(
        alone, drawn(mmprod, tmp_path / "twice.png", run, "--ensemble", run)
    )


def test_another_run_changes_the_picture(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    other = changed(run, tmp_path / "other", "fusion/model.safetensors")
    both = drawn(mmprod, tmp_path / "both.png", run, "--ensemble", other)
    assert not np.array_equal(both, drawn(mmprod, tmp_path / "alone.png", run))
    best = drawn(mmprod, tmp_path / "best.png", run, "--ensemble", other, "--best-of", 2)
    assert best.shape == both.shape


@pytest.mark.parametrize(
    ("name", "what"), [("tokenizer.json", "tokenizer"), ("codec/model.safetensors", "codec")]
)
def test_runs_of_other_ids_are_refused(
    mmprod: Mmprod, run: Path, tmp_path: Path, name: str, what: str
) -> None:
    other = changed(run, tmp_path / "other", name)
    out = tmp_path / "x.png"
    result = mmprod("generate", run, "--ensemble", other, "a hat", "--out", out)
    assert result.code == 2
    assert f"has another {what} than" in result.err
    assert not out.exists()


def test_runs_of_other_sizes_are_refused(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    other, opened = shutil.copytree(run, tmp_path / "other"), open_run(run)
    write_run(replace(opened, root=other, dims=replace(opened.dims, text_length=8)))
    out = tmp_path / "x.png"
    result = mmprod("generate", run, "--ensemble", other, "a hat", "--out", out)
    assert result.code == 2
    assert "has text_length 8" in result.err
    assert not out.exists()


def test_what_an_ensemble_cannot_do_is_said(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    joint = mmprod("generate", run, "--ensemble", run, "--joint", "--out", out)
    assert joint.code == 2
    assert "an ensemble draws pictures for captions" in joint.err
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "bundle.json").write_text("{}")
    bundle = mmprod("generate", run, "--ensemble", tmp_path / "bundle", "a hat", "--out", out)
    assert bundle.code == 2
    assert "is a bundle" in bundle.err
    assert not out.exists()
