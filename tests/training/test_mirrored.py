"""data.flip in the fusion stage: a picture is mirrored only where its caption stays true."""

from __future__ import annotations

import numpy as np

from mmprod.data.tokenizer import train_tokenizer
from mmprod.training.codes import Codes
from mmprod.training.fusion_task import FusionData, FusionTask
from mmprod.training.shares import Shares
from tests.training.tiny import ALONE, MadeUp, codec_task, tiny_config


def test_a_caption_that_speaks_of_sides_keeps_its_picture() -> None:
    config = tiny_config()
    config = config.model_copy(update={"data": config.data.model_copy(update={"flip": True})})
    split = MadeUp(64)
    split._captions = [("looks left" if i % 2 else "looks up") for i in range(64)]
    plain, mirrored = (np.full((64, 16), value, np.int32) for value in (1, 2))
    codes = Codes(plain, mirrored)
    tokenizer = train_tokenizer(split._captions, config.data.vocabulary)
    data = FusionData(split, split, codes, codes, tokenizer, codec_task(config).model)
    task = FusionTask(config, config.dims(tokenizer.vocab_size), data, ALONE.device)
    seen: dict[int, set[int]] = {0: set(), 1: set()}
    for step in range(8):
        (share,) = Shares(0, 32, 0, 1).of(step, 64, None)
        for index, row in zip(share.indices, task.batch(share)[0], strict=True):
            seen[int(index) % 2].add(int(row[0]))
    assert seen == {0: {1, 2}, 1: {1}}
