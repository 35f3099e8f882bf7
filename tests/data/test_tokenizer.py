"""Byte-level BPE: lossless, fixed ids for padding and end, deterministic, honest about cutting."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from mmprod.data.attributes import LANGUAGES, VARIANTS, caption, sample_attributes
from mmprod.data.tokenizer import EOS, PAD, Tokenizer, train_tokenizer
from mmprod.errors import ConfigError, IntegrityError


def captions() -> list[str]:
    rng = np.random.default_rng(0)
    faces = [sample_attributes(rng) for _ in range(150)]
    return [
        caption(face, language, variant)
        for face in faces
        for language in LANGUAGES
        for variant in range(VARIANTS)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(captions(), 600)


def test_captions_and_unseen_texts_come_back_exactly(tokenizer: Tokenizer) -> None:
    texts = [
        *captions()[:80],
        "Ünseen wörds 龍 🙂",
        "",
        "<eos> is not a token here",
        " leading space",
    ]
    ids = tokenizer.encode(texts, 64)
    assert ids.dtype == np.int32
    assert ids.shape == (len(texts), 64)
    assert tokenizer.decode(ids) == texts


def test_avatar_captions_fit_into_24_tokens(tokenizer: Tokenizer) -> None:
    assert (tokenizer.encode(captions(), 24)[:, -1] == PAD).all()


def test_ids_are_text_then_one_end_then_padding(tokenizer: Tokenizer) -> None:
    row = tokenizer.encode(["a hat"], 16)[0]
    end = row.tolist().index(EOS)
    assert (row[:end] > EOS).all()
    assert (row[end + 1 :] == PAD).all()
    assert row.max() < tokenizer.vocab_size


def test_decoding_stops_at_the_first_end(tokenizer: Tokenizer) -> None:
    row = tokenizer.encode(["a hat"], 16)
    row[0, 10:] = tokenizer.encode(["glasses"], 6)
    assert tokenizer.decode(row) == ["a hat"]


def test_long_texts_are_cut_before_the_end_and_logged_once(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = train_tokenizer(captions(), 600)
    with caplog.at_level(logging.WARNING):
        ids = fresh.encode(["a hat " * 30, "a hat"], 8)
        fresh.encode(["a hat " * 30], 8)
    assert ids[0, -1] == EOS
    assert "a hat a hat".startswith(fresh.decode(ids)[0][:8])
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 2 texts were cut to 7 tokens"
    ]


def test_training_is_deterministic_and_survives_the_disk(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    train_tokenizer(captions(), 600).save(tmp_path / "again.json")
    assert (tmp_path / "tokenizer.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    texts = [*captions()[:10], "<pad><eos>"]
    assert (loaded.encode(texts, 40) == tokenizer.encode(texts, 40)).all()
    assert loaded.vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": 3}'])
def test_broken_files_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(IntegrityError) as caught:
        Tokenizer.load(path)
    assert caught.value.hint


def test_a_missing_file_and_a_foreign_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError):
        Tokenizer.load(tmp_path / "none.json")
    from tokenizers import Tokenizer as Engine
    from tokenizers import models

    Engine(models.BPE()).save(str(tmp_path / "foreign.json"))
    with pytest.raises(IntegrityError, match="<pad>"):
        Tokenizer.load(tmp_path / "foreign.json")


def test_impossible_arguments_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError):
        train_tokenizer(["a"], 100)
    with pytest.raises(ConfigError):
        tokenizer.encode(["a"], 0)
    with pytest.raises(ConfigError, match="token ids") as caught:
        tokenizer.decode(np.full((1, 3), tokenizer.vocab_size))
    assert "mask" in caught.value.hint
