"""The code that Triton runs, with stand-ins for what Triton gives it."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmprod.data.tokenizer import Tokenizer
from mmprod.deploying.options import Options
from mmprod.deploying.render import render_to
from mmprod.deploying.triton_config import parse
from mmprod.deploying.triton_models import graph, text_to_image
from mmprod.graphs.runner import example_inputs
from mmprod.parity.standing import standing_rows
from mmprod.runners.ort import OrtRunner
from mmprod.sampling import noise
from tests.deploying.bundles import small_bundle


class Port:
    """A tensor as Triton's Python interface has it."""

    def __init__(self, name: str, values: Any) -> None:
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._values


class Error(Exception):
    INVALID_ARG = 3


class Response:
    def __init__(self, outputs: list[Port], error: Error | None = None) -> None:
        self.outputs, self.error = {port.name(): port.as_numpy() for port in outputs}, error


def _tensor(request: dict[str, Any], name: str) -> Port | None:
    return Port(name, request[name]) if name in request else None


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    backend: Any = types.ModuleType("triton_python_backend_utils")
    backend.Tensor, backend.InferenceResponse, backend.TritonError = Port, Response, Error
    backend.get_input_tensor_by_name = _tensor
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    bundle = small_bundle(tmp_path / "bundle")
    render_to(bundle, standing_rows(bundle), Options(), ["triton"], tmp_path / "out")
    return tmp_path / "out" / "triton"


def _arguments(folder: Path) -> dict[str, str]:
    """What Triton hands to `initialize`."""
    config = parse((folder / "config.pbtxt").read_text(encoding="utf-8"))
    content = {
        "input": [{"name": port.name} for port in config.input],
        "output": [{"name": port.name} for port in config.output],
        "parameters": {k: {"string_value": v.string_value} for k, v in config.parameters.items()},
    }
    return {
        "model_config": json.dumps(content),
        "model_repository": str(folder),
        "model_version": "1",
        "model_instance_kind": "CPU",
    }


def test_requests_run_as_one_batch_and_get_their_own_rows(repository: Path, tmp_path: Path) -> None:
    model = graph.TritonPythonModel()
    model.initialize(_arguments(repository / "graph.text_to_image"))
    made = small_bundle(tmp_path / "again")
    spec = made.specs["text_to_image"]
    every = [example_inputs(spec, rows, seed=rows) for rows in (1, 3, 2)]
    responses = model.execute(every)
    runner = OrtRunner(spec, made.root / "onnx" / "text_to_image.fp32.onnx")
    for inputs, response in zip(every, responses, strict=True):
        for name, value in runner(inputs).items():
            assert np.array_equal(response.outputs[name], value)
    model.finalize()


def test_a_batch_that_fails_is_an_error_without_the_library_s_words(repository: Path) -> None:
    model = graph.TritonPythonModel()
    model.initialize(_arguments(repository / "graph.codec_decode"))
    (response,) = model.execute([{"codes": np.full((1, 4), 10**6, np.int32)}])
    assert str(response.error).startswith("ONNX Runtime refused: ")
    assert "10" not in str(response.error)


def test_a_changed_graph_is_not_opened(repository: Path) -> None:
    folder = repository / "graph.embed_text"
    path = folder / "1" / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(RuntimeError, match=r"model\.onnx differs"):
        graph.TritonPythonModel().initialize(_arguments(folder))
    with pytest.raises(RuntimeError, match="lists no file"):
        graph.check_files(folder / "1", {"threads": "1"})


def test_a_changed_tokenizer_is_not_opened(repository: Path) -> None:
    path = repository / "text_to_image" / "1" / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(RuntimeError, match=r"tokenizer\.json differs"):
        text_to_image.TritonPythonModel().initialize(_arguments(path.parents[1]))


def test_tokens_and_noise_are_those_of_the_package(repository: Path, tmp_path: Path) -> None:
    made = small_bundle(tmp_path / "again")
    own = Tokenizer.load(made.root / "tokenizer.json")
    engine = text_to_image.Tokenizer.from_file(str(made.root / "tokenizer.json"))
    engine.encode_special_tokens = True
    for text in ("a b face", "<eos> <pad>", "x" * 50, "\N{SNOWMAN}"):
        assert np.array_equal(text_to_image.encode(engine, text, 12), own.encode([text], 12))
    runner = OrtRunner(made.specs["text_to_image"], made.root / "onnx" / "text_to_image.fp32.onnx")
    for seed in (0, 7, 2**63 - 1):
        assert np.array_equal(text_to_image.noise(seed, 3, (2, 4)), noise(runner, seed, range(3)))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompt": b"\xff"}, "no UTF-8"),
        ({"prompt": b""}, "blank"),
        ({"prompt": b"a" * 2001}, "2001 characters"),
        ({"prompt": b"a", "count": 17}, "count is 17, not within 1 to 16"),
        ({"prompt": b"a", "seed": -1}, "seed is -1"),
    ],
)
def test_unusable_requests_are_answered_in_words(
    given: dict[str, Any], says: str, repository: Path
) -> None:
    model = text_to_image.TritonPythonModel()
    model.initialize(_arguments(repository / "text_to_image"))
    request = {name: np.array([value], object) for name, value in given.items()}
    (response,) = model.execute([request])
    assert says in str(response.error)
