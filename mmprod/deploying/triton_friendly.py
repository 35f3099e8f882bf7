"""The people-friendly model beside the graphs: `text_to_image`, a prompt in and PNG files out.

It has the name and the ports of the one that `mmprod serve` has, so one client talks to both. It
asks the graph through the server (business logic scripting), so every backend serves it.
"""

from __future__ import annotations

from typing import Any

from mmprod.deploying.facts import Facts
from mmprod.deploying.files import Copy, Files
from mmprod.deploying.options import Options
from mmprod.deploying.triton import RESOURCES, largest_batch, with_config

NAME = GRAPH = "text_to_image"


def friendly_models(facts: Facts, options: Options, served: set[str]) -> Files:
    """The model, if its graph is served and the bundle has a tokenizer. served: graphs."""
    if GRAPH not in served or facts.tokenizer is None:
        return {}
    spec = facts.specs[GRAPH]
    path, digest = facts.tokenizer
    length = spec.input("tokens").sizes_at("min")[1]
    steps, positions = spec.input("noise").sizes_at("min")[1:]
    content = {
        "backend": "python",
        "max_batch_size": 0,
        "input": [
            _port("prompt", "TYPE_STRING"),
            _port("seed", "TYPE_INT64", optional=True),
            _port("count", "TYPE_INT32", optional=True),
        ],
        "output": [{"name": "pictures", "data_type": "TYPE_STRING", "dims": [-1]}],
        "version_policy": {"specific": {"versions": [1]}},
        "instance_group": [{"kind": "KIND_CPU", "count": 2}],
    }
    parameters = {
        "most": str(largest_batch(spec, options)),
        "text_length": str(length),
        "steps": str(steps),
        "positions": str(positions),
        "sha256:tokenizer.json": digest,
    }
    folder = f"triton/{NAME}"
    files: Files = {
        f"{folder}/1/model.py": (RESOURCES / f"{NAME}.py").read_text(encoding="utf-8"),
        f"{folder}/1/tokenizer.json": Copy(path),
    }
    return with_config(folder, facts, content, parameters) | files


def _port(name: str, kind: str, *, optional: bool = False) -> dict[str, Any]:
    return {"name": name, "data_type": kind, "dims": [1], "optional": optional}
