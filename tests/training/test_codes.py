"""Cached codes: what the codec gives, computed again only when codec, data or files changed."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from mmprod.errors import Preempted
from mmprod.training.codes import CHUNK, CodeSource, load_or_compute
from mmprod.training.stopping import StopRequest
from tests.training.tiny import ALONE, MadeUp, codec_task, tiny_config


@pytest.fixture
def codec():
    return codec_task(tiny_config()).model.eval().requires_grad_(False)


@pytest.fixture
def splits():
    return {"train": MadeUp(CHUNK + 6), "val": MadeUp(5, seed=1)}


def compute(root, splits, codec, **changes):
    source = CodeSource(codec, **({"weights": "w", "data": "d", "mirror": False} | changes))
    return load_or_compute(root, splits, source, ALONE, StopRequest())


def test_codes_are_what_the_codec_gives(tmp_path, codec, splits):
    codes = compute(tmp_path, splits, codec, mirror=True)
    pixels = torch.from_numpy(splits["train"].images(np.arange(CHUNK, CHUNK + 6)))
    rows = np.arange(CHUNK, CHUNK + 6)
    np.testing.assert_array_equal(codes["train"].rows(rows), codec.encode(pixels).numpy())
    mirrored = codec.encode(pixels.flip(2)).numpy()
    np.testing.assert_array_equal(codes["train"].mirrored_rows(rows), mirrored)
    assert codes["val"].plain.shape == (5, 16)
    assert codes["val"].plain.dtype == np.int32


def test_without_mirroring_there_are_no_mirrored_codes(tmp_path, codec, splits):
    codes = compute(tmp_path, splits, codec)
    with pytest.raises(ValueError, match="mirrored"):
        codes["train"].mirrored_rows(np.arange(2))


@pytest.fixture
def cached(tmp_path, codec, splits):
    """Codes on disk with an old time stamp, which only a new computation changes."""
    compute(tmp_path, splits, codec)
    path = tmp_path / "codes" / "train.npy"
    os.utime(path, (1, 1))
    return path


def was_kept(path):
    return path.stat().st_mtime == 1


def test_valid_codes_are_kept(tmp_path, codec, splits, cached):
    compute(tmp_path, splits, codec)
    assert was_kept(cached)


@pytest.mark.parametrize("change", [{"weights": "other"}, {"data": "other"}, {"mirror": True}])
def test_codes_of_another_codec_or_data_set_are_computed_again(
    tmp_path, codec, splits, cached, change
):
    compute(tmp_path, splits, codec, **change)
    assert not was_kept(cached)


@pytest.mark.parametrize("damage", ["bit", "record", "format"])
def test_damaged_codes_are_computed_again(tmp_path, codec, splits, cached, damage):
    before = np.load(cached)
    record = cached.parent / "codes.json"
    if damage == "bit":
        data = bytearray(cached.read_bytes())
        data[-1] ^= 1
        cached.write_bytes(data)
        os.utime(cached, (1, 1))
    elif damage == "record":
        record.write_text("{")
    else:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 9}))
    codes = compute(tmp_path, splits, codec)
    assert not was_kept(cached)
    np.testing.assert_array_equal(codes["train"].plain, before)


def test_a_stop_while_computing_leaves_no_record(tmp_path, codec, splits):
    stop = StopRequest()
    stop.received = "SIGTERM"
    source = CodeSource(codec, "w", "d", False)
    with pytest.raises(Preempted, match="codes"):
        load_or_compute(tmp_path, splits, source, ALONE, stop)
    assert not (tmp_path / "codes" / "codes.json").exists()
    assert len(load_or_compute(tmp_path, splits, source, ALONE, StopRequest())["train"].plain) == 70
