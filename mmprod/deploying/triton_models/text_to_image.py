"""Draw pictures of what a text says, in Triton's python backend: `prompt` in, PNG files out.

It tokenizes, draws the noise and asks the model `graph.text_to_image` of the same server, whichever
backend runs it. Picture i of a request has the noise (seed, i), as everywhere else in mmprod, so
the same prompt and seed give the same picture.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tokenizers import Tokenizer

PAD, EOS = 0, 1
MOST_CHARACTERS = 2000
GRAPH = "graph.text_to_image"


class Unusable(Exception):
    """A request that cannot be answered; its text is for the client."""


class TritonPythonModel:
    """What the backend looks for: initialize once, execute for every request, finalize."""

    def initialize(self, args: dict[str, str]) -> None:
        import triton_python_backend_utils

        self._triton = triton_python_backend_utils
        parameters = json.loads(args["model_config"])["parameters"]
        value = {name: entry["string_value"] for name, entry in parameters.items()}
        self._most, self._length = int(value["most"]), int(value["text_length"])
        self._noise = (int(value["steps"]), int(value["positions"]))
        path = Path(args["model_repository"]) / args["model_version"] / "tokenizer.json"
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != value["sha256:tokenizer.json"]:
            raise RuntimeError(f"{path.name} differs from what config.pbtxt lists: render it again")
        self._tokenizer = Tokenizer.from_str(data.decode("utf-8"))
        self._tokenizer.encode_special_tokens = True

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            prompt = text_of(self._given(request, "prompt", b""))
            count = number(self._given(request, "count", 1), "count", 1, self._most)
            random = secrets.randbits(31)
            seed = number(self._given(request, "seed", random), "seed", 0, 2**63 - 1)
            tokens = np.repeat(encode(self._tokenizer, prompt, self._length), count, axis=0)
            pixels = self._draw(tokens, noise(seed, count, self._noise))
        except Unusable as reason:
            wrong = self._triton.TritonError.INVALID_ARG
            error = self._triton.TritonError(str(reason), wrong)
            return self._triton.InferenceResponse([], error=error)
        files = np.array([png(picture) for picture in pixels], dtype=np.object_)
        return self._triton.InferenceResponse([self._triton.Tensor("pictures", files)])

    def _given(self, request: Any, name: str, default: Any) -> Any:
        tensor = self._triton.get_input_tensor_by_name(request, name)
        return default if tensor is None else tensor.as_numpy().flat[0]

    def _draw(
        self, tokens: npt.NDArray[np.int32], uniforms: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.uint8]:
        tensor = self._triton.Tensor
        asked = self._triton.InferenceRequest(
            model_name=GRAPH,
            requested_output_names=["pixels"],
            inputs=[tensor("tokens", tokens), tensor("noise", uniforms)],
        )
        answer = asked.exec()
        if answer.has_error():
            raise Unusable(f"{GRAPH}: {answer.error().message()}")
        found: npt.NDArray[np.uint8] = self._triton.get_output_tensor_by_name(
            answer, "pixels"
        ).as_numpy()
        return found


def text_of(data: bytes) -> str:
    """The prompt. Raises Unusable for what is no UTF-8, too long, or blank."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unusable("prompt is no UTF-8") from error
    if len(text) > MOST_CHARACTERS:
        raise Unusable(f"prompt has {len(text)} characters, at most {MOST_CHARACTERS}")
    if not text.strip():
        raise Unusable("prompt is blank")
    return text


def number(value: Any, name: str, least: int, most: int) -> int:
    """A whole number within bounds. Raises Unusable."""
    if not least <= int(value) <= most:
        raise Unusable(f"{name} is {int(value)}, not within {least} to {most}")
    return int(value)


def encode(tokenizer: Tokenizer, text: str, length: int) -> npt.NDArray[np.int32]:
    """text -> ids (1, length) int32: at most length - 1 of them, one EOS, then PAD."""
    ids = np.full((1, length), PAD, np.int32)
    tokens = tokenizer.encode(text).ids[: length - 1]
    ids[0, : len(tokens)] = tokens
    ids[0, len(tokens)] = EOS
    return ids


def noise(seed: int, count: int, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Uniforms in [0, 1) (count, T, N) float32, those of sample i from (seed, i)."""
    keys = [np.array([seed, index], np.uint64) for index in range(count)]
    rows = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
    return np.stack([row.random(shape, dtype=np.float32) for row in rows])


def png(picture: npt.NDArray[np.uint8]) -> bytes:
    """A picture (H, W, 3) uint8 as a file."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "png")
    return stream.getvalue()
