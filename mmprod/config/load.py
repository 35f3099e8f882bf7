"""Configurations as TOML: a file in, a frozen `Config` out, every mistake named with its place.

A configuration is a preset's name (`tiny`) or the path of a TOML file, plus overrides
`section.key=value`. Values are checked strictly (no string becomes a number by itself); a key that
does not exist is refused with the nearest one that does. Files do not inherit from each other: a
file says what differs from the defaults in `schema.py`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

import mmprod
from mmprod.config.keys import check_key, did_you_mean, flatten, is_text, section_keys
from mmprod.config.schema import Config
from mmprod.errors import ConfigError, EnvironmentMissing

CLUSTERS = "clusters"
"""folder of descriptions of clusters, which are no configurations of a job"""
DEFAULT_ORIGIN = "default"
OVERRIDE_ORIGIN = "override"


@dataclass(frozen=True)
class Origin:
    """One resolved value: dotted key, value, and where it came from.

    `origin` is `default`, `override`, or the file with its line (`configs/tiny.toml:7`).
    """

    key: str
    value: Any
    origin: str


@dataclass(frozen=True)
class _Source:
    """Raw values of one configuration by dotted key, with the origin of each."""

    label: str
    values: dict[str, Any]
    origins: dict[str, str]


def load_config(name_or_path: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a preset or file with overrides applied.

    Raises ConfigError naming the file, the key and the remedy.
    """
    return _validate(_read(name_or_path, overrides))


def resolve_with_origin(name_or_path: str, overrides: Sequence[str] = ()) -> list[Origin]:
    """Every value of the resolved configuration, in schema order, with where it came from."""
    source = _read(name_or_path, overrides)
    return [
        Origin(key, value, source.origins.get(key, DEFAULT_ORIGIN))
        for key, value in flatten(_validate(source))
    ]


def to_toml(config: Config) -> str:
    """The whole configuration as TOML; `load_config` reads exactly the same values back."""
    lines = [f"{key} = {_toml_value(value)}" for key, value in flatten(config) if "." not in key]
    for name, section in config:
        if isinstance(section, BaseModel):
            lines += ["", f"[{name}]"] + [f"{key} = {_toml_value(value)}" for key, value in section]
    return "\n".join(lines) + "\n"


def json_schema() -> dict[str, Any]:
    """JSON Schema of a configuration file, for editors and other tools."""
    return Config.model_json_schema()


def configs_dir() -> Path:
    """The folder of shipped presets: inside an installed package, or beside it in a checkout."""
    package = Path(mmprod.__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "tiny.toml").is_file():
            return folder
    raise EnvironmentMissing(
        "the shipped configurations are missing from this installation",
        hint="reinstall mmprod, or pass the path of a TOML file instead of a name",
    )


def preset_names() -> list[str]:
    """Names that `load_config` knows, smallest model first."""
    order = ("tiny", "small", "base", "large", "cluster")
    found = sorted(path.stem for path in configs_dir().glob("*.toml"))
    return sorted(found, key=lambda name: order.index(name) if name in order else len(order))


def example_names() -> list[str]:
    """Names of the shipped examples, in folders: `quantizers/fsq`."""
    return sorted(
        f"{path.parent.name}/{path.stem}"
        for path in configs_dir().glob("*/*.toml")
        if path.parent.name != CLUSTERS
    )


def _read(name_or_path: str, overrides: Sequence[str]) -> _Source:
    path, label = _locate(name_or_path)
    source = _read_file(path, label)
    for text in overrides:
        key, value = _parse_override(text)
        source.values[key] = value
        source.origins[key] = OVERRIDE_ORIGIN
    return (
        _Source(f"{label} with overrides", source.values, source.origins) if overrides else source
    )


def _locate(name_or_path: str) -> tuple[Path, str]:
    """The file to read and how messages call it."""
    path, names = Path(name_or_path), preset_names() + example_names()
    if name_or_path in names:
        return configs_dir() / f"{name_or_path}.toml", f"configs/{name_or_path}.toml"
    if path.is_file():
        return path, str(path)
    if path.suffix == ".toml" or len(path.parts) > 1:
        hint = "check the path, or use a name: " + ", ".join(names)
        raise ConfigError(f"there is no configuration file {name_or_path}", hint=hint)
    hint = did_you_mean(name_or_path, names)
    raise ConfigError(
        f"no configuration is called {name_or_path!r}",
        hint=hint or f"the names are {', '.join(names)}; the path of a TOML file works too",
    )


def _read_file(path: Path, label: str) -> _Source:
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = "mend that line; text needs quotes, lists need brackets"
        raise ConfigError(f"{label} is not valid TOML: {error}", hint=hint) from error
    except (OSError, UnicodeDecodeError) as error:
        hint = "check that it is a UTF-8 text file which you may read"
        raise ConfigError(f"{label} cannot be read: {error}", hint=hint) from error
    source = _Source(label, {}, {})
    for name, value in raw.items():
        where = _place(label, text, name)
        check_key(name, where)
        if not section_keys(name):
            source.values[name], source.origins[name] = value, where
        elif isinstance(value, dict):
            for inner, item in value.items():
                key = f"{name}.{inner}"
                source.values[key], source.origins[key] = item, _place(label, text, key)
                check_key(key, source.origins[key])
        else:
            hint = f"write [{name}] on a line of its own and its keys below"
            raise ConfigError(f"{where}: {name!r} is a section, not a value", hint=hint)
    return source


def _parse_override(text: str) -> tuple[str, Any]:
    """Key and value of `key=value`.

    The value is TOML; what is not TOML, or is given for a text setting, is taken as bare text.
    """
    key, equals, raw = (part.strip() for part in text.partition("="))
    if not equals or not key:
        hint = "for example: -o codec_train.steps=500"
        raise ConfigError(f"override {text!r} is not of the form key=value", hint=hint)
    check_key(key, f"-o {text}")
    if names := section_keys(key):
        hint = f"set one of its keys: {', '.join(names)}"
        raise ConfigError(f"-o {text}: {key!r} is a section", hint=hint)
    try:
        document = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        return key, raw
    value = document["value"]
    return key, raw if is_text(key) and not isinstance(value, str) else value


def _validate(source: _Source) -> Config:
    nested: dict[str, Any] = {}
    for key, value in source.values.items():
        section, dot, name = key.partition(".")
        if dot:
            nested.setdefault(section, {})[name] = _tuples(value)
        else:
            nested[section] = _tuples(value)
    try:
        return Config.model_validate(nested, strict=True)
    except ValidationError as error:
        lines = [_explain(detail, source) for detail in error.errors(include_url=False)]
        hint = "`mmprod config schema` lists every key with its type and range"
        raise ConfigError("\n".join(dict.fromkeys(lines)), hint=hint) from error


def _explain(detail: ErrorDetails, source: _Source) -> str:
    """One validation failure in words: where, which key, what is wrong, what was given."""
    parts = [str(part) for part in detail["loc"]]
    key = ".".join(parts[:2])
    where = source.origins.get(key, source.label)
    if detail["type"] == "value_error":
        message = detail["msg"].removeprefix("Value error, ")
        return f"{where}: {key}: {message}" if key else f"{where}: {message}"
    place = key + "".join(f"[{part}]" for part in parts[2:])
    message = detail["msg"][:1].lower() + detail["msg"][1:]
    return f"{where}: {place}: {message}, not {detail['input']!r}"


def _tuples(value: Any) -> Any:
    """TOML arrays as tuples, which is what the schema holds."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _place(label: str, text: str, key: str) -> str:
    """`file:line` of a dotted key in TOML text; the file alone when it is not written plainly."""
    section, dot, name = key.partition(".")
    wanted, current = (section, name) if dot else ("", section), ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line)
        if header:
            current = header[1]
        if current == key or (current, line.partition("=")[0].strip()) == wanted:
            return f"{label}:{number}"
    return label


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
