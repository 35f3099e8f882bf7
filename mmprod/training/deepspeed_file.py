"""A DeepSpeed file read and checked: syntax, names, types of values; each fault with its line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from mmprod.config.keys import did_you_mean
from mmprod.errors import ConfigError
from mmprod.training.deepspeed_keys import KEYS, Key, find

Json = dict[str, Any]

AUTO = "auto"
_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|[{}\[\],:]')
_WORDS = {
    "flag": "true or false",
    "count": "a whole number from 1",
    "size": "a whole number from 0",
    "number": "a number from 0",
    "share": "a number from 0 to 1",
    "text": "a text in quotes",
    "names": "a list of texts",
    "pair": "a list of two numbers from 0 to below 1",
}


class DeepSpeedFile(dict[str, Any]):
    """The content of a file, with the line of every key for messages."""

    def __init__(self, content: Json, source: str, lines: dict[str, int]) -> None:
        super().__init__(content)
        self.source, self.lines = source, lines

    def __deepcopy__(self, memo: dict[int, Any]) -> DeepSpeedFile:
        return DeepSpeedFile(json.loads(json.dumps(self)), self.source, self.lines)


def read_deepspeed(path: Path) -> DeepSpeedFile:
    """Read a DeepSpeed file and check names and types. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        hint = "shipped ones: configs/deepspeed/zero{0,1,2,3}.json"
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON: no UTF-8", hint="save it as UTF-8") from error
    try:
        raw = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        hint = "JSON takes no comments, no trailing commas, and only double quotes"
        raise ConfigError(
            f"{path}:{error.lineno}: not valid JSON: {error.msg}", hint=hint
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}", hint="mend the file") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold one JSON object", hint="see configs/deepspeed/")
    found = DeepSpeedFile(raw, str(path), _lines_of_keys(text, path))
    check(found)
    return found


def place(raw: Json, path: str) -> str:
    """Where the key `path` stands: "ds.json:12", or "the DeepSpeed file" for a plain dictionary."""
    if not isinstance(raw, DeepSpeedFile):
        return "the DeepSpeed file"
    line = raw.lines.get(path)
    return f"{raw.source}:{line}" if line else raw.source


def check(raw: Json) -> None:
    """Refuse unknown keys, with the nearest known one, and values of a wrong type, at every depth.

    Raises ConfigError.
    """
    _check(raw, raw, "")


def leaves(section: Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`(dotted key, value)` of every value that is no section; null counts as absent."""
    for name, value in section.items():
        path = f"{prefix}{name}"
        key = find(path)
        if value is None:
            continue
        if key is not None and key.kind == "section":
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def _check(raw: Json, section: Json, prefix: str) -> None:
    known = KEYS[prefix.removesuffix(".")]
    for name, value in section.items():
        path = f"{prefix}{name}"
        if name not in known:
            hint = did_you_mean(name, list(known)) or _elsewhere(name)
            raise ConfigError(
                f"{place(raw, path)}: unknown key {path!r}",
                hint=hint or f"known here: {', '.join(known)}",
            )
        if value is None:
            continue
        if known[name].kind != "section":
            if value != AUTO and not _fits(known[name], value):
                raise ConfigError(
                    f"{place(raw, path)}: {path} is {_said(value)}",
                    hint=f"use {_words(known[name])}",
                )
        elif isinstance(value, dict):
            _check(raw, value, f"{path}.")
        else:
            raise ConfigError(
                f"{place(raw, path)}: {path!r} must be an object", hint="see configs/deepspeed/"
            )


def _elsewhere(name: str) -> str:
    """A hint for a key that belongs into another section."""
    owners = [section for section, keys in KEYS.items() if name in keys]
    return f"{name} belongs into {owners[0] or 'the top level'}" if owners else ""


def _fits(key: Key, value: Any) -> bool:
    if key.kind == "free":
        return True
    if key.kind == "flag":
        return isinstance(value, bool)
    if key.kind == "text":
        return isinstance(value, str)
    if key.kind == "names":
        return isinstance(value, list) and all(isinstance(name, str) for name in value)
    if key.kind == "pair":
        return (
            isinstance(value, list)
            and len(value) == 2
            and all(_is_number(part) and 0 <= part < 1 for part in value)
        )
    if "|" in key.kind:
        return value in key.kind.split("|")
    if not _is_number(value) or value < 0:
        return False
    if key.kind == "stage":  # which ones there are: deepspeed_config.py
        return True
    if key.kind in ("count", "size"):  # people write 5e8
        return bool(value == int(value) and value >= (key.kind == "count"))
    return key.kind == "number" or value <= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not _is_huge(value)


def _is_huge(value: float) -> bool:
    """JSON has no largest number: 1e400 is read as infinity, and a whole number as it is."""
    return abs(value) > sys.float_info.max


def _said(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "a number too large to use" if number and _is_huge(value) else json.dumps(value)


def _words(key: Key) -> str:
    if key.kind == "stage":
        return "0, 1, 2 or 3"
    words = _WORDS.get(key.kind) or " or ".join(json.dumps(x) for x in key.kind.split("|"))
    return f'{words}, or "auto"'


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _lines_of_keys(text: str, source: Path) -> dict[str, int]:
    """Dotted key -> its line, in valid JSON, by punctuation alone.

    Raises ConfigError for a key that occurs twice in one object, of which JSON takes the last.
    """
    lines: dict[str, int] = {}
    around: list[str] = []
    objects: list[dict[str, int]] = []  # the names of each that is open, with their lines
    word, name, line, position = "", "", 1, 0
    for token in _TOKEN.finditer(text):
        line += text.count("\n", position, token.start())
        position = token.start()
        match token.group():
            case ":":
                name = json.loads(word)
                if name in objects[-1]:
                    raise ConfigError(
                        f"{source}:{line}: key {name!r} occurs twice, first in line "
                        f"{objects[-1][name]}",
                        hint="remove one of them",
                    )
                objects[-1][name] = line
                lines[".".join(filter(None, [*around, name]))] = line
            case "{" | "[":
                around.append(name)
                objects.append({})
                name = ""
            case "}" | "]":
                around.pop()
                objects.pop()
            case ",":
                name = ""
            case text_token:
                word = text_token
    return lines
