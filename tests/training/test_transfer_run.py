"""A run that starts from another one: what is accepted as a source, what is recorded, resume."""

from __future__ import annotations

import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from mmprod.checkpoint import open_run
from mmprod.errors import ConfigError, IntegrityError, Preempted
from mmprod.training.init_from import find_weights
from mmprod.training.run import train
from mmprod.training.transfer import read_transfer
from tests.training.mini import mini_config


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run of the codec alone."""
    root = tmp_path_factory.mktemp("transfer") / "first"
    train(mini_config(), root, stages=("codec",))
    return root


@pytest.fixture
def source(first, tmp_path):
    """A copy that a test may change or remove."""
    return shutil.copytree(first, tmp_path / "source")


def second(first, source, **train_section):
    """The job that starts from `source`, on the data of `first`."""
    section = {"init_from": str(source)} | train_section
    return mini_config(data={"path": str(first / "data")}, codec_train=section)


def test_a_run_a_stage_and_a_file_mean_the_same_weights(first):
    weights = first / "codec" / "model.safetensors"
    for path in (first, first / "codec", weights):
        assert find_weights(path, "codec") == weights


def test_sources_without_such_weights_are_refused(source, tmp_path):
    with pytest.raises(ConfigError, match="no finished fusion stage"):
        find_weights(source, "fusion")
    with pytest.raises(ConfigError, match="is a codec stage, not a fusion stage"):
        find_weights(source / "codec", "fusion")
    with pytest.raises(ConfigError, match="does not exist"):
        find_weights(tmp_path / "nothing", "codec")
    (source / "codec" / "config.json").unlink()
    with pytest.raises(ConfigError, match="no finished codec stage") as caught:
        find_weights(source, "codec")
    assert str(source / "codec" / "model.safetensors") in caught.value.hint
    with pytest.raises(ConfigError, match="no finished codec stage"):
        find_weights(tmp_path, "codec")


def test_a_damaged_source_is_an_integrity_error(source):
    path = source / "codec" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"init_from: .* was changed"):
        find_weights(source, "codec")


def test_a_source_missing_for_the_second_stage_stops_the_first(first, tmp_path):
    config = mini_config(data={"path": str(first / "data")}, fusion_train={"init_from": str(first)})
    with pytest.raises(ConfigError, match="no finished fusion stage"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_needs_its_source_no_more_and_keeps_frozen_bits(first, source, tmp_path):
    config = second(first, source, freeze=("encoder", "quantizer"))
    given = load_file(source / "codec" / "model.safetensors")
    root = tmp_path / "run"

    def stop(event):
        if (event.kind, event.step) == ("log", 2):
            signal.raise_signal(signal.SIGUSR1)

    with pytest.raises(Preempted, match="saved at step"):
        train(config, root, stages=("codec",), on_event=stop)
    shutil.rmtree(source)
    train(config, root, stages=("codec",))
    final = load_file(root / "codec" / "model.safetensors")
    counters = {f"quantizer.{name}" for name in ("rate", "seen", "tokens", "updates")}
    kept = {n for n in given if not n.startswith("decoder.")} - counters
    assert kept
    assert all(torch.equal(final[name], given[name]) for name in kept)
    moved = {n for n in given if n.startswith("decoder.")}
    assert not any(torch.equal(final[name], given[name]) for name in moved)
    transfer = read_transfer(root / "codec")
    assert transfer is not None
    assert transfer.count("loaded") == len(given) == len(transfer.tensors)
    assert "codec/init.json" in {entry.path for entry in open_run(root).files}


def test_training_anew_without_a_source_is_refused_before_anything_is_removed(
    first, source, tmp_path
):
    config, root = second(first, source), tmp_path / "run"
    train(config, root, stages=("codec",))
    shutil.rmtree(source)
    with pytest.raises(ConfigError, match="init_from"):
        train(config, root, stages=("codec",), resume="never")
    assert (root / "codec" / "init.json").is_file()
    assert set(open_run(root).stages) == {"codec"}
