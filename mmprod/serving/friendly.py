"""Models for people: text and picture files in, text and picture files out.

    text_to_image   prompt, seed?, count?                              -> pictures (PNG)
    image_to_text   picture, seed?                                     -> text
    joint           seed?, count?                                      -> pictures (PNG), texts
    edit            picture, mask? | prompt?, strength?, seed?, count? -> pictures (PNG)
    compress        picture                                            -> file, psnr
    decompress      file                                               -> pictures (PNG)
    embed           text | picture                                     -> embedding
    search          text | picture, count?                             -> keys, scores, pictures

They compose the same functions as the commands do (`mmprod.sampling`, `mmprod.bitstream`), over
runners that queue in the batchers, so that requests of many clients share a batch. Each runs on a
thread of a small pool, off the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass

from mmprod.graphs.runner import Arrays
from mmprod.serving import friendly_codec, friendly_pictures, friendly_search
from mmprod.serving.given import Given
from mmprod.serving.graph_model import Call
from mmprod.serving.kit import Kit, Made
from mmprod.serving.model import Answer, Parameters, Port
from mmprod.serving.refusal import busy

Make = Callable[[Kit, Given, Call], Made]
QUEUE = 4
"""requests that may wait, for each thread"""


@dataclass(frozen=True)
class Recipe:
    """A friendly model before it is bound to a bundle. graphs: all it may use."""

    name: str
    summary: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    graphs: tuple[str, ...]
    make: Make


def _text(name: str, *, optional: bool = False) -> Port:
    return Port(name, "BYTES", (1,), "text", optional)


def _picture(name: str, *, optional: bool = False) -> Port:
    return Port(name, "BYTES", (1,), "picture", optional)


SEED = Port("seed", "INT64", (1,), optional=True)
COUNT = Port("count", "INT32", (1,), optional=True)
PICTURES = Port("pictures", "BYTES", (-1,), "picture")

RECIPES = (
    Recipe(
        "text_to_image",
        "draw pictures of what a text says",
        (_text("prompt"), SEED, COUNT),
        (PICTURES,),
        ("text_to_image",),
        friendly_pictures.text_to_image,
    ),
    Recipe(
        "image_to_text",
        "say what a picture shows",
        (_picture("picture"), SEED),
        (_text("text"),),
        ("image_to_text",),
        friendly_pictures.image_to_text,
    ),
    Recipe(
        "joint",
        "draw pictures and their captions together, out of nothing",
        (SEED, COUNT),
        (PICTURES, Port("texts", "BYTES", (-1,), "text")),
        ("joint",),
        friendly_pictures.joint,
    ),
    Recipe(
        "edit",
        "draw parts of a picture anew: the white of a mask, or what a new text contradicts",
        (
            _picture("picture"),
            _picture("mask", optional=True),
            _text("prompt", optional=True),
            Port("strength", "FP32", (1,), optional=True),
            SEED,
            COUNT,
        ),
        (PICTURES,),
        ("edit", "image_to_text", "codec_encode", "fusion_step"),
        friendly_pictures.edit,
    ),
    Recipe(
        "compress",
        "a picture of any size as a small file, read back before it is sent",
        (_picture("picture"),),
        (
            Port("file", "BYTES", (1,), "file"),
            Port("psnr", "FP32", (1,)),
            Port("bits_per_pixel", "FP32", (1,)),
        ),
        ("codec_encode", "codec_decode"),
        friendly_codec.compress,
    ),
    Recipe(
        "decompress",
        "the pictures of such a file",
        (Port("file", "BYTES", (1,), "file"),),
        (PICTURES,),
        ("codec_decode",),
        friendly_codec.decompress,
    ),
    Recipe(
        "embed",
        "a text or a picture as a vector of length 1; those that fit each other point alike",
        (_text("text", optional=True), _picture("picture", optional=True)),
        (Port("embedding", "FP32", (-1,)),),
        ("embed_text", "codec_encode", "embed_image"),
        friendly_search.embed,
    ),
)

SEARCH = Recipe(
    "search",
    "pictures of the index that fit a text or a picture, best first",
    (_text("text", optional=True), _picture("picture", optional=True), COUNT),
    (
        Port("keys", "BYTES", (-1,), "text"),
        Port("scores", "FP32", (-1,)),
        Port("pictures", "BYTES", (-1,), "picture"),
    ),
    ("embed_text", "codec_encode", "embed_image"),
    friendly_search.search,
)


class FriendlyModel:
    """A recipe bound to a bundle."""

    def __init__(self, recipe: Recipe, kit: Kit, pool: ThreadPoolExecutor, threads: int) -> None:
        self.name, self.summary = recipe.name, recipe.summary
        self.inputs, self.outputs = recipe.inputs, recipe.outputs
        self.steps = tuple(kit.graphs[name].step for name in recipe.graphs)
        self.extra: Parameters = {}
        if {"text_to_image", "joint", "edit"} & set(recipe.graphs):
            self.extra = {"guidance": kit.sampler.guidance, "steps": kit.sampler.image_steps}
        self._make, self._kit, self._pool = recipe.make, kit, pool
        self._most = threads * (1 + QUEUE)
        self._running = 0

    async def infer(self, inputs: Arrays) -> Answer:
        if self._running >= self._most:
            raise busy(f"{self._running} requests of {self.name} wait already")
        call, held = Call(), [Given(inputs, self._kit.limits)]
        loop = asyncio.get_running_loop()
        self._running += 1
        try:
            made = await loop.run_in_executor(self._pool, self._run, held, call)
        finally:
            call.cancelled.set()
            held.clear()  # the pool keeps what was cancelled until a thread is free
            self._running -= 1
        return Answer(made.outputs, tuple(call.steps), made.extra)

    def _run(self, held: list[Given], call: Call) -> Made:
        try:
            given = held.pop()
        except IndexError:
            raise CancelledError from None
        return self._make(self._kit, given, call)


def bind(kit: Kit, pool: ThreadPoolExecutor, threads: int) -> list[FriendlyModel]:
    """All friendly models whose graphs are served; `search` with an index only."""
    recipes = (*RECIPES, SEARCH) if kit.searcher else RECIPES
    return [
        FriendlyModel(recipe, kit, pool, threads)
        for recipe in recipes
        if all(name in kit.graphs for name in recipe.graphs)
    ]
