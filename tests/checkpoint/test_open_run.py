"""A run folder is opened only when every file is what run.json says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmprod.checkpoint import Run, StageRecord, open_run
from mmprod.checkpoint.models import load_codec, load_models
from mmprod.checkpoint.run import write_run
from mmprod.config.load import to_toml
from mmprod.config.schema import CodecConfig, Config, DataConfig, FusionConfig
from mmprod.errors import IntegrityError
from mmprod.manifest import FileEntry
from mmprod.models.codec import build_codec
from mmprod.models.fusion import build_fusion
from mmprod.training.evaluating import write_weights


@pytest.fixture
def root(tmp_path):
    """A run with both stages, made without training."""
    config = Config(
        name="made",
        data=DataConfig(image_size=16),
        codec=CodecConfig(channels=8, multipliers=(1, 2), codebook_size=16, code_dim=4),
        fusion=FusionConfig(width=16, heads=2, embedding=8),
    )
    dims = config.dims(300)
    (tmp_path / "config.toml").write_text(to_toml(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    for stage, model in (
        ("codec", build_codec(config.codec)),
        ("fusion", build_fusion(config.fusion, dims)),
    ):
        (tmp_path / stage).mkdir()
        write_weights(tmp_path / stage / "model.safetensors", model, {})
    names = ["config.toml", "tokenizer.json"]
    names += [f"{stage}/model.safetensors" for stage in ("codec", "fusion")]
    write_run(
        Run(
            root=tmp_path,
            config=config,
            dims=dims,
            stages={name: StageRecord(5, 4, {"loss": 0.5}) for name in ("codec", "fusion")},
            data="data",
            data_fingerprint="f",
            versions={"torch": torch.__version__},
            files=tuple(FileEntry.of(tmp_path, tmp_path / name) for name in names),
        )
    )
    return tmp_path


def edit(root, **changes):
    path = root / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_written_is_read_back(root):
    run = open_run(root)
    assert run.config.name == run.name == "made"
    assert run.dims == run.config.dims(300)
    assert run.stages["fusion"] == StageRecord(5, 4, {"loss": 0.5})
    assert run.tokenizer_path == root / "tokenizer.json"
    assert run.data_root == root / "data"
    provenance = json.loads(json.dumps(run.provenance()))
    assert provenance["data"] == "f"
    assert len(provenance["files"]) == 4


def test_models_are_ready_for_use(root):
    models = load_models(open_run(root))
    for model in (models.codec, models.fusion):
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["config.toml", "tokenizer.json", "fusion/model.safetensors"])
def test_a_flipped_bit_is_found(root, name):
    data = bytearray((root / name).read_bytes())
    data[len(data) // 2] ^= 1
    (root / name).write_bytes(data)
    with pytest.raises(IntegrityError, match=name) as caught:
        open_run(root)
    assert caught.value.exit_code == 4
    assert caught.value.hint


def test_a_missing_file_is_found(root):
    (root / "codec" / "model.safetensors").unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        open_run(root)


def test_a_folder_without_run_json_is_no_run(tmp_path):
    with pytest.raises(IntegrityError, match=r"run\.json is missing") as caught:
        open_run(tmp_path)
    assert "mmprod train" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 1}, "run format 1, this version reads 2"),
        ({"format": 9}, "run format 9"),
        ({"kind": "bundle"}, "does not describe a run"),
        ({"dims": {"width": 3}}, "lacks something"),
        ({"stages": {"codec": {}}}, "lacks something"),
        ({"files": [{"name": "x"}]}, "unknown form"),
        ({"files": [{"path": "../x", "sha256": "", "bytes": 0}]}, "outside the folder"),
    ],
)
def test_a_record_that_cannot_be_trusted_is_refused(root, changes, message):
    edit(root, **changes)
    with pytest.raises(IntegrityError, match=message):
        open_run(root)


def test_a_stage_that_was_not_trained_is_named(root):
    edit(root, stages={"codec": {"steps": 1, "best_step": 1, "metrics": {}}})
    run = open_run(root)
    assert load_codec(run).training is False
    with pytest.raises(IntegrityError, match="no trained fusion model") as caught:
        load_models(run)
    assert "--model fusion" in caught.value.hint


def test_weights_of_another_model_do_not_load(root):
    path = root / "codec" / "model.safetensors"
    save_file({"foreign": torch.zeros(1)}, path)
    files = [e for e in json.loads((root / "run.json").read_text())["files"]]
    entry = FileEntry.of(root, path).as_dict()
    edit(root, files=[entry if e["path"] == entry["path"] else e for e in files])
    with pytest.raises(IntegrityError, match="does not hold the weights"):
        load_codec(open_run(root))


def test_opening_a_run_needs_no_torch():
    code = "import sys, mmprod.checkpoint; sys.exit('torch' in sys.modules)"
    cwd = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=cwd, check=False).returncode == 0
