"""A graph of an mmprod bundle in Triton's python backend: NumPy, ONNX Runtime, and a check of the
file's hash before it is opened.

`config.pbtxt` beside this folder says what goes in and out and, under `parameters`, which files
belong to the graph (`sha256:FILE`). Requests that Triton's dynamic batcher brings together run as
one batch; each gets its own rows back.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

PROVIDERS = {"CPU": "CPUExecutionProvider", "GPU": "CUDAExecutionProvider"}


class TritonPythonModel:
    """What the backend looks for: initialize once, execute for every batch, finalize."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the graph. A wrong hash, or a provider that fell back, fails the model's loading."""
        import triton_python_backend_utils

        self._triton = triton_python_backend_utils
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self._outputs = [output["name"] for output in config["output"]]
        self._inputs = [port["name"] for port in config["input"]]
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        names = check_files(folder, parameters)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["threads"])
        options.log_severity_level = 3
        wanted = PROVIDERS[args["model_instance_kind"]]
        graph = next(name for name in names if name.endswith(".onnx"))
        self._session = onnxruntime.InferenceSession(
            str(folder / graph), options, providers=[wanted]
        )
        if (found := self._session.get_providers()[0]) != wanted:
            raise RuntimeError(f"asked for {wanted}, ONNX Runtime fell back to {found}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """All requests as one batch; a batch that fails is an error of each."""
        tensor = self._triton.get_input_tensor_by_name
        given = [{name: tensor(r, name).as_numpy() for name in self._inputs} for r in requests]
        joined = {name: np.concatenate([one[name] for one in given]) for name in self._inputs}
        try:
            found = self._session.run(self._outputs, joined)
        except Exception as error:  # of any class: the library has a dozen  # noqa: BLE001
            reason = self._triton.TritonError(f"ONNX Runtime refused: {type(error).__name__}")
            return [self._triton.InferenceResponse([], error=reason) for _ in requests]
        ends = np.cumsum([len(one[self._inputs[0]]) for one in given])[:-1]
        parts = [np.split(values, ends) for values in found]
        return [
            self._triton.InferenceResponse(
                [
                    self._triton.Tensor(n, part[i])
                    for n, part in zip(self._outputs, parts, strict=True)
                ]
            )
            for i in range(len(requests))
        ]

    def finalize(self) -> None:
        del self._session


def check_files(folder: Path, parameters: dict[str, str]) -> list[str]:
    """Names of the files that `parameters` lists as `sha256:FILE`, all of them as listed.

    Raises RuntimeError for one that differs, or when none is listed.
    """
    names = [key.removeprefix("sha256:") for key in parameters if key.startswith("sha256:")]
    for name in names:
        with (folder / name).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != parameters[f"sha256:{name}"]:
            raise RuntimeError(f"{name} differs from what config.pbtxt lists: render it again")
    if not names:
        raise RuntimeError("config.pbtxt lists no file of the graph")
    return names
