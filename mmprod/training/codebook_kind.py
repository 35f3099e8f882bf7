"""Whether the codebook in a file of weights means the same as the one that would take it over.

Names and shapes do not tell: 6 x 10 and 10 x 6 levels, or two books of 32 and four of 16, look
alike. Files written since say it in their metadata, a stage's config.json says it beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mmprod.checkpoint import layout
from mmprod.errors import IntegrityError
from mmprod.training.records import read_stage


def read_codebook(path: Path) -> dict[str, Any]:
    """What a file of weights says of its codebook; empty where nothing does.

    Raises IntegrityError when it cannot be understood, or the stage's record beside it is broken.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if layout.CODEBOOK not in metadata:
        record = read_stage(path.parent) if path.name == layout.WEIGHTS else None
        return dict(record["model"]) if record is not None else {}
    try:
        found = json.loads(metadata[layout.CODEBOOK])
    except json.JSONDecodeError as error:
        raise IntegrityError(
            f"init_from: the metadata of {path} cannot be read: {error}",
            hint="give weights of a finished training, from a good copy",
        ) from error
    return dict(found) if isinstance(found, dict) else {}


def other_codebook(own: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Why a codebook of another kind or form cannot be taken; empty when it is of the same."""
    if not own.keys() <= given.keys():
        return "of a codebook whose kind the file does not tell"
    for name, value in own.items():
        if given[name] != value:
            return f"of a codebook with {name} {given[name]}, here {value}"
    return ""
