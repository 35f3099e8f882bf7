"""The parts of each model that can be trained or frozen, by the names they have everywhere.

A part is a set of parameters, given by how their names begin (see `part_of`); every parameter
belongs to exactly one. Torch-free, so that a configuration is checked before anything is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

PARTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "codec": {
        "encoder": ("encoder.",),
        "quantizer": ("quantizer.",),
        "decoder": ("decoder.",),
    },
    "fusion": {
        "image_encoder": (
            *("image.embed.", "image.feature_map.", "image.place", "image.registers"),
            "image.tower.",
        ),
        "text_encoder": ("text.embed.", "text.place", "text.registers", "text.tower."),
        "connector": ("connector.",),
        "image_decoder": ("image.decoder.", "image.head_norm.", "image.head_bias"),
        "text_decoder": ("text.decoder.", "text.head_norm.", "text.head_bias"),
        "search": ("image.search", "text.search", "similarity"),
    },
}
"""Beginnings of parameter names by stage and part. The tied heads belong to the encoders."""


def part_of(stage: str, parameter: str) -> str:
    """The part that a parameter (or buffer) of a stage's model belongs to; empty: to none."""
    return next((name for name, starts in PARTS[stage].items() if parameter.startswith(starts)), "")


def check_freeze(stage: str, names: Sequence[str], init_from: str) -> None:
    """Raise ValueError unless `names` are parts, one of which is left, with weights to keep."""
    parts = list(PARTS[stage])
    for name in names:
        if name not in parts:
            near = get_close_matches(name, parts, n=1, cutoff=0.5)
            nearest = f"did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"{stage}_train.freeze: {stage} has no part {name!r}; "
                f"{nearest}its parts are {', '.join(parts)}"
            )
    if set(names) == set(parts):
        raise ValueError(f"{stage}_train.freeze names every part: nothing is left to train")
    if names and not init_from:
        raise ValueError(
            f"{stage}_train.freeze keeps weights as they are: say which in {stage}_train.init_from"
        )
