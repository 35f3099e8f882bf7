"""The hash of a codec, and the file that carries it in a bundle."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mmprod.checkpoint.identity import codec_facts
from mmprod.config.schema import CodecConfig, Config, DataConfig
from mmprod.errors import IntegrityError
from mmprod.graphs.codec_facts import CodecFacts
from mmprod.models.codec import build_codec


def facts(changed: str = "", patch: int = 1, size: int = 16) -> CodecFacts:
    """Of a fixed codec, of which one number may be another."""
    cfg = CodecConfig(patch=patch, channels=8, multipliers=(1,), codebook_size=8)  # type: ignore[arg-type]
    torch.manual_seed(0)
    codec = build_codec(cfg)
    for name, tensor in codec.state_dict().items():
        if name == changed:
            tensor.view(-1)[0] += 1
    return codec_facts(codec, cfg, Config(data=DataConfig(image_size=size), codec=cfg).dims(300))


def test_the_hash_covers_what_decoding_depends_on_and_no_more() -> None:
    base = facts().digest
    assert facts().digest == base
    assert facts("encoder.layers.0.bias").digest == base
    others = [
        facts("decoder.layers.0.bias").digest,
        facts("quantizer.rate").digest,
        facts(patch=2).digest,
        facts(size=32).digest,
    ]
    assert len({base, *others}) == 5


def test_facts_survive_a_file_and_damage_is_noticed(tmp_path: Path) -> None:
    known, path = facts("quantizer.rate"), tmp_path / "codec.npz"
    path.write_bytes(known.to_bytes())
    assert zipfile.is_zipfile(path)
    found = CodecFacts.load(path, 8)
    assert found.digest == known.digest
    np.testing.assert_array_equal(found.rate, known.rate)
    with pytest.raises(IntegrityError, match="the codec has 16"):
        CodecFacts.load(path, 16)
    for content in (b"", b"PK\x03\x04", known.to_bytes()[:100]):
        path.write_bytes(content)
        with pytest.raises(IntegrityError):
            CodecFacts.load(path, 8)


def test_every_damage_of_the_file_is_noticed(tmp_path: Path) -> None:
    known, path = facts("quantizer.rate"), tmp_path / "codec.npz"
    rng, whole = np.random.default_rng(0), known.to_bytes()
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] = rng.integers(256)
        path.write_bytes(data)
        try:
            assert CodecFacts.load(path, 8).digest == known.digest
        except IntegrityError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("value", [-1e-3, np.nan, np.inf])
def test_rates_that_cannot_be_are_refused(value: float, tmp_path: Path) -> None:
    rate = np.full(8, 0.1, np.float32)
    rate[3] = value
    (tmp_path / "codec.npz").write_bytes(CodecFacts("ab" * 32, rate).to_bytes())
    with pytest.raises(IntegrityError, match="negative, NaN or infinite"):
        CodecFacts.load(tmp_path / "codec.npz", 8)
