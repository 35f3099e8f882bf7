"""`train` from a configuration to a finished run folder, on drawn avatars."""

from __future__ import annotations

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmprod.checkpoint import open_run
from mmprod.checkpoint.models import load_models
from mmprod.errors import ConfigError, IntegrityError, Preempted
from mmprod.manifest import sha256_file
from mmprod.training.metrics import read_metrics
from mmprod.training.run import train
from mmprod.training.transfer import read_transfer
from tests.models.test_perceptual import vgg16
from tests.training.mini import TRAIN, mini_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and the events of its training."""
    root = tmp_path_factory.mktemp("runs") / "mini"
    events = []
    train(mini_config(), root, on_event=events.append)
    return root, events


@pytest.fixture
def run_folder(finished, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(finished[0], tmp_path / "run")


def test_the_run_folder_holds_what_was_promised(finished):
    root, _ = finished
    for stage in ("codec", "fusion"):
        for name in (
            "metrics.jsonl",
            "model.safetensors",
            "config.json",
            "checkpoints/latest",
            "checkpoints/best",
            "checkpoints/step-00000004/manifest.json",
            "samples/step-000004.png",
        ):
            assert (root / stage / name).is_file(), (stage, name)
        assert list((root / stage / "tensorboard").iterdir())
        steps = [line["step"] for line in read_metrics(root / stage) if line["kind"] == "log"]
        assert steps == [1, 2, 3, 4]
    codes = np.load(root / "codes" / "train.npy")
    assert codes.shape == (58, 64)
    assert {"train.npy", "val.npy", "test.npy", "test_combo.npy", "codes.json"} == {
        path.name for path in (root / "codes").iterdir()
    }


def test_the_run_opens_and_its_models_load(finished):
    run = open_run(finished[0])
    models = load_models(run)
    assert run.config == mini_config()
    assert run.dims.vocabulary <= 300
    assert set(run.stages) == {"codec", "fusion"}
    assert run.data_root.is_dir()
    saved = load_file(finished[0] / "codec" / "model.safetensors")
    assert all((models.codec.state_dict()[k] == v).all() for k, v in saved.items())
    assert not models.fusion.training
    assert not any(p.requires_grad for p in models.fusion.parameters())


def test_events_tell_the_whole_story(finished):
    kinds = [(e.stage, e.kind, e.step) for e in finished[1] if e.kind in ("stage", "save")]
    assert kinds == [
        (stage, kind, step)
        for stage in ("codec", "fusion")
        for kind, step in (("stage", 0), ("save", 2), ("save", 4))
    ]


def test_the_same_command_again_does_nothing(run_folder):
    before = {p: p.stat().st_mtime_ns for p in run_folder.rglob("model.safetensors")}
    result = train(mini_config(), run_folder)
    assert all(stage.skipped for stage in result.stages.values())
    assert before == {p: p.stat().st_mtime_ns for p in run_folder.rglob("model.safetensors")}


def test_another_configuration_is_refused_with_the_keys(run_folder):
    other = mini_config(codec_train={"lr": 1e-2}, data={"flip": True})
    with pytest.raises(ConfigError) as caught:
        train(other, run_folder)
    assert "codec_train.lr (was 0.0004, now 0.01)" in caught.value.message
    assert "data.flip" in caught.value.message
    assert "config.toml" in caught.value.hint


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not a run folder"):
        train(mini_config(), tmp_path)


def test_fusion_needs_a_codec(finished, tmp_path):
    config = mini_config(data={"path": str(finished[0] / "data")})
    with pytest.raises(ConfigError, match="no trained codec") as caught:
        train(config, tmp_path / "run", stages=("fusion",))
    assert "--model codec" in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": ("decoder",)}, "decoder"),
        ({"stages": ()}, "none"),
        ({"resume": "nowhere"}, "not a step folder"),
    ],
)
def test_requests_that_make_no_sense(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        train(mini_config(), tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_damaged_weights_stop_a_second_training(run_folder):
    path = run_folder / "codec" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        train(mini_config(), run_folder)
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        open_run(run_folder)


def test_a_new_codec_makes_the_old_fusion_model_stale(finished, tmp_path):
    """The fusion model of the old codec must not pass for one of the new codec."""
    start = tmp_path / "start.safetensors"
    data = {"path": str(finished[0] / "data")}
    config = mini_config(data=data, codec_train={"init_from": str(start)})
    root = tmp_path / "run"
    shutil.copy(finished[0] / "codec" / "model.safetensors", start)
    train(config, root)
    assert set(open_run(root).stages) == {"codec", "fusion"}
    weights = load_file(start)
    save_file({name: t * 0.5 if t.is_floating_point() else t for name, t in weights.items()}, start)
    train(config, root, stages=("codec",), resume="never")
    assert set(open_run(root).stages) == {"codec"}
    with pytest.raises(
        IntegrityError, match="another configuration, data set, tokenizer or codec"
    ) as caught:
        train(config, root)
    assert "--resume never" in caught.value.hint
    result = train(config, root, stages=("fusion",), resume="never")
    assert not result.stages["fusion"].skipped
    assert set(open_run(root).stages) == {"codec", "fusion"}


def test_resume_from_a_named_step_trains_that_stage_on(run_folder):
    before = (run_folder / "fusion" / "model.safetensors").read_bytes()
    (run_folder / "fusion" / "model.safetensors").write_bytes(b"lost")
    step = run_folder / "fusion" / "checkpoints" / "step-00000002"
    (run_folder / "fusion" / "config.json").unlink()
    result = train(mini_config(), run_folder, resume=str(step))
    assert result.stages["codec"].skipped
    assert (run_folder / "fusion" / "model.safetensors").read_bytes() == before


def test_training_starts_from_given_weights_and_says_what_did_not_fit(finished, tmp_path, caplog):
    weights = load_file(finished[0] / "codec" / "model.safetensors")
    weights["unknown"] = weights["quantizer.rate"].clone()
    weights["decoder.layers.0.weight"] = weights["decoder.layers.0.weight"][:1].clone()
    path = tmp_path / "start.safetensors"
    with safe_open(finished[0] / "codec" / "model.safetensors", "pt") as file:
        save_file(weights, path, metadata=file.metadata())
    data = {"path": str(finished[0] / "data")}
    config = mini_config(data=data, codec_train={**TRAIN, "init_from": str(path), "lr": 1e-9})
    train(config, tmp_path / "run", stages=("codec",))
    trained = load_file(tmp_path / "run" / "codec" / "model.safetensors")
    name = "encoder.layers.1.weight"
    assert abs(trained[name] - weights[name]).max() < 1e-6
    verdicts = {v.name: v.verdict for v in read_transfer(tmp_path / "run" / "codec").tensors}
    assert verdicts["unknown"] == "unused"
    assert verdicts["decoder.layers.0.weight"] == "fresh"
    assert "1 stay fresh" in caplog.text


def test_flipped_pictures_and_their_codes(finished, tmp_path):
    root = tmp_path / "run"
    train(mini_config(data={"flip": True, "path": str(finished[0] / "data")}), root)
    record = json.loads((root / "codes" / "codes.json").read_text())
    assert record["mirror"] is True
    assert (root / "codes" / "train-mirrored.npy").is_file()


def test_an_external_data_set_is_used_in_place(finished, tmp_path):
    config = mini_config(data={"path": str(finished[0] / "data")})
    train(config, tmp_path / "run", stages=("codec",))
    run = open_run(tmp_path / "run")
    assert run.data_root == (finished[0] / "data").resolve()
    wrong = mini_config(data={"path": str(finished[0] / "data"), "image_size": 16})
    with pytest.raises(ConfigError, match="holds pictures of 32 pixels"):
        train(wrong, tmp_path / "run2", stages=("codec",))


@pytest.mark.slow
def test_a_stage_records_the_perceptual_weights_it_learned_with(finished, tmp_path):
    """And goes on with no others."""
    torch.save(vgg16(), tmp_path / "vgg16.pth")
    codec = {"loss": "natural", "perceptual": str(tmp_path / "vgg16.pth")}
    data = {"path": str(finished[0] / "data")}
    config = mini_config(data=data, codec=codec)

    def stop(event):
        if (event.kind, event.step) == ("log", 2):
            signal.raise_signal(signal.SIGUSR1)

    with pytest.raises(Preempted):
        train(config, tmp_path / "run", stages=("codec",), on_event=stop)
    first = sha256_file(tmp_path / "vgg16.pth")
    saved = (tmp_path / "vgg16.pth").read_bytes()
    torch.save({name: 2 * tensor for name, tensor in vgg16().items()}, tmp_path / "vgg16.pth")
    with pytest.raises(ConfigError, match="other perceptual weights"):
        train(config, tmp_path / "run", stages=("codec",))
    (tmp_path / "vgg16.pth").write_bytes(saved)
    train(config, tmp_path / "run", stages=("codec",))
    record = json.loads((tmp_path / "run" / "codec" / "config.json").read_text())
    assert record["learned_with"] == {"perceptual": first}
