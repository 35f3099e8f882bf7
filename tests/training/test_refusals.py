"""What cannot work is refused before anything trains, and before anything finished is touched."""

from __future__ import annotations

import shutil
import signal

import numpy as np
import pytest

from mmprod.checkpoint import open_run
from mmprod.config.schema import TrainConfig
from mmprod.data.writer import Caption, DataInfo, DataWriter, Sample
from mmprod.errors import ConfigError, IntegrityError, Preempted
from mmprod.training import codes
from mmprod.training.batches import check_groups
from mmprod.training.run import train
from tests.training.mini import mini_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run whose codec started from weights in another file."""
    root = tmp_path_factory.mktemp("refusals")
    train(mini_config(), root / "first", stages=("codec",))
    start = root / "start.safetensors"
    shutil.copy(root / "first" / "codec" / "model.safetensors", start)
    config = mini_config(
        data={"path": str(root / "first" / "data")}, codec_train={"init_from": str(start)}
    )
    train(config, root / "run")
    return root, config


@pytest.fixture
def run(finished, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(finished[0] / "run", tmp_path / "run"), finished[1]


def contents(root):
    return {path.relative_to(root): path.stat().st_size for path in root.rglob("*")}


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_refused_training_leaves_the_finished_stage_alone(run, finished):
    root, config = run
    before = contents(root)
    start = finished[0] / "start.safetensors"
    away = start.rename(start.with_suffix(".away"))
    try:
        with pytest.raises(ConfigError, match="init_from"):
            train(config, root, stages=("codec",), resume="never")
    finally:
        away.rename(start)
    assert contents(root) == before
    assert set(open_run(root).stages) == {"codec", "fusion"}


def test_a_damaged_named_step_leaves_the_finished_stage_alone(run):
    root, config = run
    step = root / "codec" / "checkpoints" / "step-00000002"
    flip_a_bit(step / "state-00000.safetensors")
    before = contents(root)
    with pytest.raises(IntegrityError, match="state-00000"):
        train(config, root, resume=str(step))
    assert contents(root) == before


def test_a_named_step_gives_up_the_newer_ones(run):
    root, config = run
    folder = root / "fusion" / "checkpoints"

    def stop(event):
        if event.kind == "stage" and event.stage == "fusion":
            signal.raise_signal(signal.SIGUSR1)

    with pytest.raises(Preempted, match="saved at step 3"):
        train(config, root, resume=str(folder / "step-00000002"), on_event=stop)
    assert sorted(p.name for p in folder.glob("step-*")) == ["step-00000002", "step-00000003"]
    assert train(config, root).stages["fusion"].steps == 4


def test_a_step_of_another_run_gives_up_nothing(run, tmp_path):
    root, config = run
    other = shutil.copytree(root, tmp_path / "other")
    before = contents(root)
    with pytest.raises(ConfigError, match="a step of another run") as caught:
        train(config, root, resume=str(other / "fusion" / "checkpoints" / "step-00000002"))
    assert f"fusion_train.init_from={other / 'fusion'}" in caught.value.hint
    assert contents(root) == before


@pytest.fixture
def survive():
    """A signal that training does not take must fail the test, not end the suite."""
    before = {n: signal.signal(n, lambda *_: None) for n in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("survive")
def test_a_signal_in_the_last_save_of_a_stage_stops_before_the_next(finished, tmp_path):
    data = {"path": str(finished[0] / "first" / "data")}

    def stop(event):
        if (event.stage, event.kind, event.step) == ("codec", "save", 4):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Preempted, match="finished: codec") as caught:
        train(mini_config(data=data), tmp_path / "run", on_event=stop)
    assert caught.value.hint
    assert (tmp_path / "run" / "codec" / "config.json").is_file()
    assert not (tmp_path / "run" / "fusion").exists()
    result = train(mini_config(data=data), tmp_path / "run")
    assert [stage.skipped for stage in result.stages.values()] == [True, False]


@pytest.mark.usefixtures("survive")
def test_a_signal_while_codes_are_computed_stops_the_job(run, monkeypatch):
    root, config = run
    shutil.rmtree(root / "codes")
    encode = codes._encode

    def signalled(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return encode(*arguments)

    monkeypatch.setattr(codes, "_encode", signalled)
    with pytest.raises(Preempted, match="codes"):
        train(config, root, stages=("fusion",), resume="never")
    assert (root / "fusion" / "config.json").is_file()


@pytest.mark.usefixtures("survive")
def test_a_signal_in_the_last_save_of_all_does_not_spoil_a_finished_run(finished, tmp_path):
    data = {"path": str(finished[0] / "first" / "data")}

    def stop(event):
        if (event.kind, event.step) == ("save", 4):
            signal.raise_signal(signal.SIGTERM)

    train(mini_config(data=data), tmp_path / "run", stages=("codec",), on_event=stop)
    assert set(open_run(tmp_path / "run").stages) == {"codec"}


def test_changed_pictures_stop_training(finished, tmp_path):
    data = shutil.copytree(finished[0] / "first" / "data", tmp_path / "data")
    flip_a_bit(data / "train" / "data.arrow")
    config = mini_config(data={"path": str(data)})
    with pytest.raises(IntegrityError, match=r"data\.arrow was changed"):
        train(config, tmp_path / "run")


def test_a_changed_tokenizer_does_not_pass_for_the_trained_one(run):
    root, config = run
    path = root / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(IntegrityError, match="tokenizer"):
        train(config, root)
    (root / "fusion" / "config.json").unlink()
    with pytest.raises(ConfigError, match="tokenizer: saved"):
        train(config, root)


def test_a_prepared_data_set_of_another_source_is_refused(finished, tmp_path):
    data = {"path": str(finished[0] / "first" / "data"), "source": "emoji"}
    with pytest.raises(ConfigError, match=r"made from avatars, data\.source is emoji") as caught:
        train(mini_config(data=data), tmp_path / "run")
    assert "data.source=avatars" in caught.value.hint


def captioned(folder, texts):
    """A prepared data set of plain pictures; `texts`: language and caption of each, or None."""
    with DataWriter(folder, DataInfo("folder", 32, 0, {})) as writer:
        for split in ("train", "val"):
            for index, text in enumerate(texts):
                captions = (Caption(*text),) if text else ()
                picture = np.full((32, 32, 3), index, np.uint8)
                writer.add(split, Sample(f"{split}-{index}", picture, captions))
    return {"path": str(folder), "source": "folder"}


ENGLISH, UNKNOWN = ("en", "a face"), ("", "a face")


def test_pictures_without_captions_are_refused_before_the_codec_trains(tmp_path):
    data = captioned(tmp_path / "data", [ENGLISH] * 8 + [None, ("zh", "脸")])
    with pytest.raises(ConfigError, match="4 samples have no caption in en") as caught:
        train(mini_config(data=data), tmp_path / "run")
    assert "train-8, train-9; val: val-8, val-9" in caught.value.message
    assert "--model codec" in caught.value.hint
    assert not (tmp_path / "run" / "codec").exists()
    train(mini_config(data=data), tmp_path / "run", stages=("codec",))


def test_a_language_that_no_sample_has_is_refused(tmp_path):
    data = captioned(tmp_path / "data", [ENGLISH] * 8)
    with pytest.raises(ConfigError, match="no training sample has a caption in fr"):
        train(mini_config(data={**data, "languages": ("en", "fr")}), tmp_path / "run")


def test_captions_of_unknown_language_count_for_every_language(tmp_path):
    data = captioned(tmp_path / "data", [UNKNOWN] * 8)
    assert "fusion" in train(mini_config(data=data), tmp_path / "run").stages


def test_groups_are_checked_before_any_stage_trains(finished, tmp_path):
    data = {"path": str(finished[0] / "first" / "data")}
    config = mini_config(data=data, fusion_train={"batch": 12})
    with pytest.raises(ConfigError, match="gives 12 samples each") as caught:
        train(config, tmp_path / "run")
    assert "multiple of 8" in caught.value.hint
    assert not (tmp_path / "run").exists()


def accumulating(steps):
    return {"gradient_accumulation_steps": steps}


@pytest.mark.parametrize(
    ("batch", "deepspeed", "world"),
    [(4, None, 1), (8, None, 1), (24, None, 1), (32, {}, 4), (64, accumulating(2), 4)],
)
def test_whole_groups_pass(batch, deepspeed, world):
    check_groups(TrainConfig(batch=batch, precision="fp32"), deepspeed, world)


@pytest.mark.parametrize(
    ("batch", "deepspeed", "world", "hint"),
    [(12, None, 1, 8), (16, {}, 4, 32), (8, {}, 2, 16), (8, accumulating(2), 1, 16)],
)
def test_broken_groups_are_refused_with_the_numbers(batch, deepspeed, world, hint):
    cfg = TrainConfig(batch=batch, precision="fp32")
    with pytest.raises(ConfigError, match=f"fusion_train.batch {batch}") as caught:
        check_groups(cfg, deepspeed, world)
    assert f"multiple of {hint}" in caught.value.hint
