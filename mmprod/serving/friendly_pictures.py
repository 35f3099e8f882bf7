"""Friendly models that draw and describe: see `friendly`."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from mmprod.sampling import (
    Ids,
    Pixels,
    caption_images,
    draw_joint,
    edit_images,
    generate_images,
    no_words,
    places_outside,
    places_that_agree,
)
from mmprod.serving.given import Given
from mmprod.serving.graph_model import Call
from mmprod.serving.kit import Kit, Made
from mmprod.serving.refusal import bad
from mmprod.serving.tensors import as_elements

STRENGTH = 0.4
"""Share of the places that an edit by words draws anew, unless told."""


def text_to_image(kit: Kit, given: Given, call: Call) -> Made:
    """Picture i of a request is drawn with the noise (seed, i)."""
    prompt, seed = given.text("prompt"), given.seed()
    runner = kit.runner("text_to_image", call)
    count = given.number("count", 1, 1, runner.spec.dims[0].max)
    pictures = generate_images(runner, kit.tokenizer, [prompt] * count, seed)
    return Made({"pictures": as_pngs(pictures)}, {"seed": seed})


def image_to_text(kit: Kit, given: Given, call: Call) -> Made:
    picture, seed = given.square("picture", kit.dims.image_size), given.seed()
    texts = caption_images(kit.runner("image_to_text", call), kit.tokenizer, picture[None], seed)
    return Made({"text": as_elements(text.encode() for text in texts)}, {"seed": seed})


def joint(kit: Kit, given: Given, call: Call) -> Made:
    """Pair i of a request is drawn with the noise (seed, i)."""
    seed, runner = given.seed(), kit.runner("joint", call)
    drawn = draw_joint(runner, given.number("count", 1, 1, runner.spec.dims[0].max), seed)
    texts = as_elements(text.encode() for text in kit.tokenizer.decode(drawn.tokens))
    return Made({"pictures": as_pngs(drawn.pixels), "texts": texts}, {"seed": seed})


def edit(kit: Kit, given: Given, call: Call) -> Made:
    """With a mask, its white is drawn anew, and a prompt says as what; without, the prompt says
    what the picture shall show, and places that contradict it are drawn anew.
    """
    if "mask" not in given and "prompt" not in given:
        raise bad("give mask, or prompt, or both")
    if "mask" in given and "strength" in given:
        raise bad("strength has no effect beside mask, which says what is drawn anew")
    picture, seed = given.square("picture", kit.dims.image_size), given.seed()
    runner = kit.runner("edit", call)
    count = given.number("count", 1, 1, runner.spec.dims[0].max)
    tokens = no_words(kit.dims, 1)
    if "prompt" in given:
        tokens = kit.tokenizer.encode([given.text("prompt")], kit.dims.text_length)
    keep = _outside(kit, given) if "mask" in given else _agreeing(kit, given, call, picture, tokens)
    each = picture[None].repeat(count, 0), keep.repeat(count, 0), tokens.repeat(count, 0)
    drawn = edit_images(runner, *each, seed)
    extra = {"seed": seed, "places": int(keep.size), "places_drawn": int(keep.size - keep.sum())}
    return Made({"pictures": as_pngs(drawn.pixels)}, {**extra})


def as_pngs(pictures: Pixels) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    """pictures (B, H, W, 3) uint8 -> (B,) PNG files."""
    return as_elements(_png(picture) for picture in pictures)


def _outside(kit: Kit, given: Given) -> Ids:
    """keep (1, N): 0 where the mask is white."""
    white = given.mask("mask", kit.dims.image_size)
    if not white.any():
        raise bad("mask has no white within the square that the model sees: nothing would change")
    return places_outside(white, kit.dims)[None]


def _agreeing(kit: Kit, given: Given, call: Call, picture: Pixels, tokens: Ids) -> Ids:
    """keep (1, N): 0 for the share `strength` of places that fit the new text less than the one
    that the model itself gives the picture.
    """
    strength = given.share("strength", STRENGTH)
    describe = kit.runner("image_to_text", call)
    before = caption_images(describe, kit.tokenizer, picture[None], 0)
    known = kit.tokenizer.encode(before, kit.dims.text_length)
    codes = kit.runner("codec_encode", call)({"pixels": picture[None]})["codes"]
    step = kit.runner("fusion_step", call)
    return places_that_agree(step, kit.dims, codes, (known, tokens), strength)


def _png(picture: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "png")
    return stream.getvalue()
