"""Emoji as picture-text pairs: several drawing styles, English and Chinese names, split by concept.

A concept is an emoji without its skin tone, gender and direction; concepts that share a drawing are
one. No concept is in two splits, and val and test show no skin tones, so that a figure there speaks
of things never seen in training.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmprod.data.emoji_packages import (
    NAMES,
    NAMES_LICENCE,
    STYLES,
    Drawing,
    Name,
    check_styles,
    fetch_packages,
    read_drawings,
    read_names,
)
from mmprod.data.pictures import UnusablePicture, bombs_are_errors, read_picture, square
from mmprod.data.processes import map_processes
from mmprod.data.spool import Spool
from mmprod.data.svg import UnusableDrawing, render_svg, resvg
from mmprod.data.writer import Caption, DataInfo, DataWriter, Sample
from mmprod.errors import ConfigError

_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
_UNMARKED = _TONES | {"200d", "2640", "2642", "27a1"}
_PEOPLE = {"1f468": "1f9d1", "1f469": "1f9d1", "1f466": "1f9d2", "1f467": "1f9d2"}
_HELD_OUT = 0.08  # share of the concepts in val, and in test
_KEYWORDS = 4
_OVERSAMPLING = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Picture:
    """A drawing, its place in the spool, the hash of its pixels."""

    drawing: Drawing
    place: int
    digest: bytes


def prepare_emoji(
    out: Path,
    *,
    size: int,
    seed: int,
    styles: tuple[str, ...] = tuple(STYLES),
    packages: Path | None = None,
    workers: int = 0,
) -> None:
    """Make the data set `out`: pictures size x size over white, captions in English and Chinese.

    Train holds every skin tone, weighted so that each concept counts the same. `packages`: a folder
    that already holds the unpacked packages; without it they are fetched with npm (28 MB for all
    styles). Raises ConfigError, EnvironmentMissing (npm, network, resvg), IntegrityError (a damaged
    package).
    """
    check_styles(styles)
    if not 8 <= size <= 1024:
        raise ConfigError(f"picture size {size}", hint="8 to 1024 pixels")
    wanted = [NAMES, *(STYLES[style].package for style in styles)]
    info = DataInfo(
        source="emoji",
        size=size,
        seed=seed,
        generator={
            "packages": wanted,
            **{name: metadata.version(name) for name in ("resvg-py", "pillow", "numpy")},
        },
        licences=(NAMES_LICENCE, *dict.fromkeys(STYLES[style].licence for style in styles)),
    )
    with DataWriter(out, info) as writer, ExitStack() as stack:
        resvg()
        if packages is None:
            packages = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=out.parent)))
            fetch_packages(wanted, packages)
        names = read_names(packages)
        drawings = [
            d for style in styles for d in read_drawings(packages, style) if d.code in names
        ]
        spool = stack.enter_context(Spool(out.parent, size))
        pictures = []
        results = map_processes(partial(_draw, size=size), drawings, workers)
        for drawing, result in zip(drawings, results, strict=True):
            if isinstance(result, str):
                file = f"{drawing.style}: {drawing.code}"
                writer.skipped.append({"file": file, "reason": result})
                logger.warning("left out %s: %s", file, result)
            else:
                pictures.append(_Picture(drawing, *spool.append(result)))
        _write(writer, spool, pictures, names, seed)


def _write(
    writer: DataWriter, spool: Spool, pictures: list[_Picture], names: dict[str, Name], seed: int
) -> None:
    concepts = _concepts(pictures)
    splits = _draw_splits(set(concepts), seed)
    counts = Counter(concept for concept in concepts if splits[concept] == "train")
    mean = sum(counts.values()) / len(counts)
    for split in ("train", "val", "test"):
        for picture, concept in zip(pictures, concepts, strict=True):
            name = names[picture.drawing.code]
            if splits[concept] != split or (split != "train" and name.tone):
                continue
            style = picture.drawing.style
            attributes = {"style": style, "group": name.group, "concept": concept}
            sample = Sample(
                key=f"{style}/{picture.drawing.code}",
                image=spool.read(picture.place),
                captions=_captions(name, style),
                attributes=attributes | ({"skin_tone": name.tone} if name.tone else {}),
                weight=mean / counts[concept] if split == "train" else 1.0,
            )
            writer.add(split, sample)


def _draw(drawing: Drawing, size: int) -> NDArray[np.uint8] | str:
    """The picture (size, size, 3) over white, or the reason why there is none."""
    try:
        if isinstance(drawing.source, Path):
            with bombs_are_errors():
                return read_picture(drawing.source, size)
        return square(render_svg(drawing.source, drawing.view_box, size * _OVERSAMPLING), size)
    except (UnusablePicture, UnusableDrawing) as error:
        return str(error)


def _concepts(pictures: list[_Picture]) -> list[str]:
    """The concept of each picture; concepts that share a drawing get the name of the first."""
    parents: dict[str, str] = {}

    def root(concept: str) -> str:
        while parents.setdefault(concept, concept) != concept:
            concept = parents[concept]
        return concept

    first: dict[tuple[str, bytes], str] = {}
    for picture in pictures:
        concept = _concept(picture.drawing.code)
        same = first.setdefault((picture.drawing.style, picture.digest), concept)
        low, high = sorted((root(concept), root(same)))
        parents[high] = low
    return [root(_concept(picture.drawing.code)) for picture in pictures]


def _concept(code: str) -> str:
    """An emoji's code without skin tone, gender and direction."""
    points = [_PEOPLE.get(point, point) for point in code.split("-") if point not in _UNMARKED]
    return "-".join(points) or code


def _draw_splits(concepts: set[str], seed: int) -> dict[str, str]:
    """Concept -> split, by rank of a hash; val and test hold at least one concept each."""
    held = max(1, round(_HELD_OUT * len(concepts)))
    if len(concepts) <= 2 * held:
        raise ConfigError(
            f"{len(concepts)} emoji do not fill three splits",
            hint="fetch the packages again, or choose other styles",
        )
    ranked = sorted(concepts, key=lambda c: hashlib.sha256(f"{seed}/{c}".encode()).digest())
    splits = ["val"] * held + ["test"] * held + ["train"] * (len(ranked) - 2 * held)
    return dict(zip(ranked, splits, strict=True))


def _captions(name: Name, style: str) -> tuple[Caption, ...]:
    """In each language: the label; the label with its style; the label with keywords."""
    captions = []
    for language, (label, keywords) in name.labels.items():
        comma = {"en": ", ", "zh": "，"}[language]
        styled = {
            "en": f"{label}, {STYLES[style].name} style",
            "zh": f"{label}，{STYLES[style].name}风格",
        }
        texts = [label, styled[language]]
        others = [word for word in keywords if word not in label][:_KEYWORDS]
        if others:
            texts.append(comma.join([label, *others]))
        captions += [Caption(language, text) for text in texts]
    return tuple(captions)
