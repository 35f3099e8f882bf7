"""Whether the ids in weights of a fusion model mean what they mean here.

Names and shapes do not tell: two tokenizers of 4096 tokens number other words, two codecs of 1024
codes other patches. What is learned per id is then worth nothing; towers and connector still are.
A codec that was trained further keeps its codes' meaning, so code vectors are compared, not hashes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mmprod.checkpoint import layout
from mmprod.manifest import sha256_file

VECTORS = "image.features"
"""the codec's code vectors (K, C), kept among the weights of a fusion model"""
SAME = 0.5
"""The share of codes whose nearest vector has their own number: 0.88 between steps 500 and 1000 of
the demo's codec, about 1 / K for another one."""
_PER_ID = ("embed.", "head_bias")


def other_ids(
    source: Path, own: dict[str, Tensor], given: dict[str, Tensor], tokenizer: str
) -> dict[str, str]:
    """By beginning of a tensor's name, why its rows belong to other ids. `tokenizer`: our SHA-256.

    The tokenizer of weights is the one of their run; a file outside a run tells none, and is taken
    at its word.
    """
    found = {}
    theirs = source.parent.parent / layout.TOKENIZER
    if source.name == layout.WEIGHTS and theirs.is_file() and sha256_file(theirs) != tokenizer:
        found["text."] = "of another tokenizer"
    if VECTORS in own and VECTORS in given and not _same_codes(own[VECTORS], given[VECTORS]):
        found["image."] = "of another codec"
    return {modality + part: why for modality, why in found.items() for part in _PER_ID}


def _same_codes(own: Tensor, given: Tensor) -> bool:
    """Both (K, C); of other shapes they are not the same."""
    if own.shape != given.shape:
        return False
    if own.cpu().equal(given.cpu()):  # also where they are of no width
        return True
    nearest = torch.cdist(own.float().cpu(), given.float().cpu()).argmin(1)
    return float((nearest == torch.arange(len(own))).float().mean()) >= SAME
