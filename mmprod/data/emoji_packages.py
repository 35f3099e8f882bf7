"""The npm packages behind the emoji pairs: fetched by name and version, then read as plain files.

Drawings come from icon collections (SVG bodies in one JSON, or one WebP per emoji), names and
keywords from `emojibase-data` (Unicode CLDR). Each collection keeps its own licence, see `STYLES`.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError

LANGUAGES = ("en", "zh")
NAMES = "emojibase-data@17.0.0"
NAMES_LICENCE = "emojibase-data: MIT; names from Unicode CLDR, Unicode licence"
_TIMEOUT_S = 600

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Style:
    """One drawing style: npm package with version, its name in captions, the drawings' licence."""

    package: str
    name: str
    licence: str


STYLES = {
    "noto": Style("@iconify-json/noto@1.2.9", "Noto", "Noto Emoji: Apache-2.0"),
    "twemoji": Style(
        "@iconify-json/twemoji@1.2.5",
        "Twemoji",
        "Twemoji, (c) Twitter, Inc and other contributors: CC-BY-4.0",
    ),
    "fluent-flat": Style(
        "@iconify-json/fluent-emoji-flat@1.2.6", "Fluent flat", "Fluent Emoji by Microsoft: MIT"
    ),
    "fluent-3d": Style(
        "@lobehub/fluent-emoji-3d@1.1.0", "Fluent 3D", "Fluent Emoji by Microsoft: MIT"
    ),
}


@dataclass(frozen=True)
class Name:
    """What one emoji is called:

    Language -> (label, keywords); its group; its skin tones, "" for none.
    """

    labels: dict[str, tuple[str, tuple[str, ...]]]
    group: str
    tone: str


@dataclass(frozen=True)
class Drawing:
    """One picture to draw: an emoji's code, its style, and SVG elements or a raster file's path."""

    code: str
    style: str
    source: str | Path
    view_box: str = ""


def folder_of(package: str) -> str:
    """The folder name of a package: "@scope/name@1.0" -> "scope-name"."""
    return package.rpartition("@")[0].removeprefix("@").replace("/", "-")


def fetch_packages(packages: list[str], folder: Path) -> None:
    """Download packages with `npm pack` and unpack each to `folder`/<folder_of>/. Needs npm and a
    network.

    npm checks each archive against the registry's hash. Raises EnvironmentMissing with npm's own
    last words.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise EnvironmentMissing(
            "npm, which fetches the emoji packages, is not installed",
            hint="install Node.js with npm; or `mmprod data prepare avatars` needs no network",
        )
    for package in packages:
        target = folder / folder_of(package)
        target.mkdir(parents=True)
        logger.info("fetching %s", package)
        command = [
            npm,
            "pack",
            package,
            "--loglevel=error",
            "--ignore-scripts",
            "--pack-destination",
            str(target.resolve()),
        ]
        try:
            run = subprocess.run(
                command, cwd=target, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise EnvironmentMissing(
                f"npm did not fetch {package} within {_TIMEOUT_S} s", hint="check the network"
            ) from error
        archives = list(target.glob("*.tgz"))
        if run.returncode != 0 or len(archives) != 1:
            words = (run.stderr or run.stdout).strip().splitlines() or [f"exit {run.returncode}"]
            raise EnvironmentMissing(
                f"npm could not fetch {package}: {words[-1]}",
                hint=f"try `npm pack {package}`; check the network",
            )
        with tarfile.open(archives[0]) as archive:
            archive.extractall(target, filter="data")
        archives[0].unlink()


def read_names(packages: Path) -> dict[str, Name]:
    """Code -> name of every emoji, skin tones included; modifiers and lone letters are left out."""
    root = packages / folder_of(NAMES) / "package"
    groups = _json(root / "meta" / "groups.json")["groups"]
    texts: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {}
    about: dict[str, tuple[str, str]] = {}
    for language in LANGUAGES:
        for entry in _with_skins(_json(root / language / "data.json")):
            code = plain_code(entry["hexcode"])
            group = groups.get(str(entry.get("group")), "")
            if group in ("", "component"):
                continue
            texts.setdefault(code, {})[language] = (entry["label"], tuple(entry.get("tags", ())))
            tone = entry.get("tone", "")
            about[code] = (group, "-".join(map(str, tone)) if isinstance(tone, list) else str(tone))
    return {code: Name(texts[code], *about[code]) for code in texts}


def read_drawings(packages: Path, style: str) -> Iterator[Drawing]:
    """Every drawing of a style that belongs to an emoji code, in the order of the codes."""
    root = packages / folder_of(STYLES[style].package) / "package"
    if (root / "icons.json").is_file():
        icons = _json(root / "icons.json")
        parents = {name: alias["parent"] for name, alias in icons.get("aliases", {}).items()}
        for code, name in sorted(_json(root / "chars.json").items()):
            icon = icons["icons"].get(parents.get(name, name))
            if icon is not None:
                width = icon.get("width", icons.get("width", 16))
                height = icon.get("height", icons.get("height", 16))
                box = f"0 0 {width} {height}"
                yield Drawing(plain_code(code), style, icon["body"], box)
        return
    files = sorted((root / "assets").glob("*.webp"))
    if not files:
        raise IntegrityError(
            f"{root} holds neither icons.json nor assets/*.webp",
            hint=f"fetch it again: npm pack {STYLES[style].package}",
        )
    for path in files:
        yield Drawing(plain_code(path.stem), style, path)


def check_styles(styles: tuple[str, ...]) -> None:
    """Raises ConfigError for an unknown style, or none at all."""
    unknown = [style for style in styles if style not in STYLES]
    if unknown or not styles:
        raise ConfigError(
            f"no emoji style {', '.join(unknown) or 'given'}", hint=f"styles: {', '.join(STYLES)}"
        )


def plain_code(code: str) -> str:
    """Lower-case code points joined by "-", without variation selectors."""
    return "-".join(point for point in code.lower().split("-") if point != "fe0f")


def _with_skins(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        yield entry
        for skin in entry.get("skins", ()):
            yield {"tags": entry.get("tags", ()), **skin}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise IntegrityError(
            f"{path} cannot be read: {error}", hint="fetch the packages again"
        ) from error
