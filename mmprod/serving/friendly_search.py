"""Friendly models of the shared space of texts and pictures: see `friendly`."""

from __future__ import annotations

import numpy as np

from mmprod.graphs.runner import Array
from mmprod.serving.given import Given
from mmprod.serving.graph_model import Call
from mmprod.serving.kit import Kit, Made
from mmprod.serving.tensors import as_elements

MOST_HITS = 100


def embed(kit: Kit, given: Given, call: Call) -> Made:
    return Made({"embedding": _vector(kit, given, call)})


def search(kit: Kit, given: Given, call: Call) -> Made:
    assert kit.searcher is not None
    count = given.number("count", 10, 1, MOST_HITS)
    hits = kit.searcher.search(_vector(kit, given, call), count)
    outputs = {
        "keys": as_elements(hit.key.encode() for hit in hits),
        "scores": np.array([hit.score for hit in hits], np.float32),
        "pictures": as_elements(hit.picture for hit in hits),
    }
    return Made(outputs)


def _vector(kit: Kit, given: Given, call: Call) -> Array:
    """(E,) float32 of the text or the picture."""
    if given.one_of("text", "picture") == "text":
        tokens = kit.tokenizer.encode([given.text("text")], kit.dims.text_length)
        found = kit.runner("embed_text", call)({"tokens": tokens})["embedding"]
        return np.asarray(found[0])
    picture = given.square("picture", kit.dims.image_size)
    codes = kit.runner("codec_encode", call)({"pixels": picture[None]})["codes"]
    return np.asarray(kit.runner("embed_image", call)({"codes": codes})["embedding"][0])
