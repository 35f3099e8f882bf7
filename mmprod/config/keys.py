"""The names of settings: which exist, and which one a mistyped name probably meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

from mmprod.config.schema import Config
from mmprod.errors import ConfigError


def flatten(config: Config) -> Iterator[tuple[str, Any]]:
    """`(dotted key, value)` of every setting, in schema order."""
    for name, value in config:
        if isinstance(value, BaseModel):
            for key, inner in value:
                yield f"{name}.{key}", inner
        else:
            yield name, value


def section_keys(name: str) -> list[str]:
    """The keys of section `name`; empty when there is no section of that name."""
    field = Config.model_fields.get(name)
    kind = field.annotation if field else None
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return list(kind.model_fields)
    return []


def is_text(key: str) -> bool:
    """Whether the setting `key` (dotted) holds a string."""
    return isinstance(dict(flatten(Config()))[key], str)


def check_key(key: str, where: str) -> None:
    """Raise ConfigError unless `key` (dotted) exists; suggest the nearest one."""
    settings = [full for full, _ in flatten(Config())]
    sections = [name for name in Config.model_fields if section_keys(name)]
    if key in settings or key in sections:
        return
    section, dot, name = key.partition(".")
    inside = [full for full in settings if dot and full.startswith(f"{section}.")]
    near = get_close_matches(key, inside or settings + sections, n=1, cutoff=0.75)
    elsewhere = [full for full in settings if full.rpartition(".")[2] == (name or section)]
    choices = list(dict.fromkeys(near + elsewhere))
    if choices:
        hint = f"did you mean {' or '.join(choices)}?"
    else:
        hint = "known here: " + ", ".join(section_keys(section) or Config.model_fields)
    raise ConfigError(f"{where}: unknown key {key!r}", hint=hint)


def did_you_mean(word: str, choices: Sequence[str]) -> str:
    """`did you mean X?` for the nearest of `choices`, or nothing."""
    near = get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else ""
