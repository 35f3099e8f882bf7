"""What lies between a user and a graph: captions, picture files and noise to arrays, and back.

End to end is what somebody pays who holds a caption or a PNG and wants one. Codes and masks are
nobody's text or picture; graphs between those have no edge, and no end-to-end figure.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmprod.data.tokenizer import Tokenizer
from mmprod.graphs.runner import Array, Runner, example_inputs
from mmprod.graphs.spec import GraphSpec, Tensor
from mmprod.sampling import noise

Held = Mapping[str, Sequence[str] | list[bytes] | Array]
"""What a user holds, by input."""
WORDS = "a face with short red hair, round glasses and a blue shirt"
"""A caption of common length; what it says does not change the time of anything."""


class Edges:
    """The edges of one graph. `tokenizer` None: a graph that takes or gives text has no edge.

    tokens that may be masked are given as they are: a text has no masks.
    """

    def __init__(self, spec: GraphSpec, vocabulary: int, tokenizer: Tokenizer | None) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        texts = [t for t in (*spec.inputs, *spec.outputs) if t.role == "tokens"]
        self._texts = {t.name for t in texts if t.below == vocabulary}
        roles = {t.role for t in (*spec.inputs, *spec.outputs)}
        self.exist = bool(self._texts or "pixels" in roles) and bool(tokenizer or not self._texts)

    @classmethod
    def load(cls, spec: GraphSpec, vocabulary: int, path: Path | None) -> Edges:
        """With the tokenizer of a file, None for none; it is read where there are texts only."""
        bare = cls(spec, vocabulary, None)
        return cls(spec, vocabulary, Tokenizer.load(path)) if bare._texts and path else bare

    def given(self, batch: int, seed: int) -> Held:
        """What a user holds: captions, PNG files; arrays for the rest. Not part of the time."""
        arrays = example_inputs(self.spec, batch, seed)
        held: dict[str, Sequence[str] | list[bytes] | Array] = dict(arrays)
        for tensor in self.spec.inputs:
            if tensor.role == "pixels":
                held[tensor.name] = [png(picture) for picture in arrays[tensor.name]]
            elif tensor.name in self._texts:
                held[tensor.name] = [WORDS] * batch
        return held

    def __call__(self, runner: Runner, held: Held, seed: int) -> dict[str, object]:
        """From what a user holds to what a user wants: PNG files and captions, else arrays."""
        inputs = {t.name: self._array(runner, t, held[t.name], seed) for t in self.spec.inputs}
        outputs = runner(inputs)
        return {t.name: self._wanted(t, outputs[t.name]) for t in self.spec.outputs}

    def _array(
        self, runner: Runner, tensor: Tensor, value: Sequence[str] | list[bytes] | Array, seed: int
    ) -> Array:
        if tensor.role == "noise":
            return noise(runner, seed, range(len(value)))
        if tensor.role == "pixels":
            return np.stack([_pixels(data) for data in value])
        if tensor.name in self._texts and self.tokenizer:
            return self.tokenizer.encode([str(text) for text in value], tensor.sizes_at("min")[1])
        return np.asarray(value)

    def _wanted(self, tensor: Tensor, value: Array) -> object:
        if tensor.role == "pixels":
            return [png(picture) for picture in value]
        if tensor.name in self._texts and self.tokenizer:
            return self.tokenizer.decode(value)
        return value


def png(picture: Array) -> bytes:
    """picture (H, W, 3) uint8 -> a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "png")
    return stream.getvalue()


def _pixels(data: object) -> Array:
    if not isinstance(data, bytes):
        raise TypeError(f"a PNG file is bytes, not {type(data).__name__}")
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))
