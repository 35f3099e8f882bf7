"""Byte-level BPE on the captions: lossless on every language, trained in a second or two, no
download.

Id 0 is padding, id 1 ends the text. The mask id of the diffusion model is not a token: the model
uses `vocab_size`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers, trainers

from mmprod.errors import ConfigError, IntegrityError
from mmprod.manifest import atomic_path

PAD, EOS = 0, 1
_SPECIALS = ["<pad>", "<eos>"]
_MINIMUM = len(_SPECIALS) + 256

logger = logging.getLogger(__name__)


class Tokenizer:
    """Texts <-> rows of token ids (B, L) int32: ids, one EOS, then PAD."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._told = False

    @property
    def vocab_size(self) -> int:
        """Number of token ids, specials included."""
        return int(self._engine.get_vocab_size())

    def encode(self, texts: Sequence[str], length: int) -> NDArray[np.int32]:
        """texts (B) -> ids (B, length) int32 in [0, vocab_size).

        A text of more than length - 1 tokens is cut before its EOS; the first call that cuts logs
        how many. Special tokens cannot be written in a text: "<eos>" in a caption is encoded as its
        characters.
        """
        if length < 1:
            raise ConfigError(
                f"text length {length} leaves no room for the end token", hint="length >= 1"
            )
        ids = np.full((len(texts), length), PAD, np.int32)
        cut = 0
        for row, encoding in zip(ids, self._engine.encode_batch(list(texts)), strict=True):
            tokens = encoding.ids[: length - 1]
            cut += len(encoding.ids) > len(tokens)
            row[: len(tokens)] = tokens
            row[len(tokens)] = EOS
        if cut and not self._told:
            self._told = True
            logger.warning("%d of %d texts were cut to %d tokens", cut, len(texts), length - 1)
        return ids

    def decode(self, ids: NDArray[np.integer]) -> list[str]:
        """ids (B, L) -> texts, each up to its first EOS.

        Raises ConfigError for ids outside the vocabulary.
        """
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise ConfigError(
                f"token ids must lie in [0, {self.vocab_size}), got {ids.min()} to {ids.max()}",
                hint="mask ids must be filled before decoding",
            )
        rows = []
        for row in ids.tolist():
            end = row.index(EOS) if EOS in row else len(row)
            rows.append([token for token in row[:end] if token != PAD])
        return list(self._engine.decode_batch(rows, skip_special_tokens=True))

    def save(self, path: Path) -> None:
        """Write one JSON file, atomically."""
        with atomic_path(path) as temporary:
            temporary.write_text(self._engine.to_str(pretty=True), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read what `save` wrote.

        Raises IntegrityError when the file is missing or no such tokenizer.
        """
        hint = "train again, or take tokenizer.json from the run or bundle that the model came from"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise IntegrityError(f"{path} cannot be read: {error}", hint=hint) from error
        try:
            engine = Engine.from_str(text)
        except Exception as error:  # the library raises bare Exception for a malformed file
            raise IntegrityError(f"{path} is not a tokenizer: {error}", hint=hint) from error
        if [engine.id_to_token(PAD), engine.id_to_token(EOS)] != _SPECIALS:
            raise IntegrityError(f"{path} lacks <pad> and <eos> at ids 0 and 1", hint=hint)
        engine.encode_special_tokens = True
        return cls(engine)


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE.

    Deterministic; the vocabulary stays smaller where the captions hold fewer merges.
    """
    if vocab_size < _MINIMUM:
        raise ConfigError(
            f"vocab_size {vocab_size} is below {_MINIMUM} (256 bytes and the specials)",
            hint=f"set it to {_MINIMUM} or more",
        )
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    engine.train_from_iterator(captions, trainer)
    engine.encode_special_tokens = True
    return Tokenizer(engine)
