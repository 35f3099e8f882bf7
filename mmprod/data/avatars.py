"""Generated cartoon faces with exact attributes and captions: the data set that needs no download.

`python-avatars` (Avataaars artwork by Pablo Stanley, MIT) assembles the SVG, `resvg` draws it.
Every part is set explicitly, so a picture depends only on (attributes, seed, size), never on global
random state.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmprod.data import attributes as vocabulary
from mmprod.data.attributes import HIDDEN, LANGUAGES, VARIANTS, caption, check_attributes
from mmprod.data.processes import map_processes
from mmprod.data.svg import need, render_svg, resvg
from mmprod.data.writer import Caption, DataInfo, DataWriter, Sample
from mmprod.errors import ConfigError

_VIEW_BOX = "22 10 220 220"  # the square of the 264 x 280 drawing that head, hat and collar fill
_OVERSAMPLING = 2

_HAIR_COLORS = {
    "black": "#1E1A1C",
    "brown": "#7A4524",
    "blond": "#E3B64F",
    "red": "#D2330F",
    "gray": "#C3C8CE",
    "pink": "#F472B0",
}
_CLOTHES_COLORS = {
    "red": "#D62839",
    "blue": "#1F55C4",
    "green": "#1E8A3C",
    "black": "#23262B",
    "orange": "#F77F00",
    "purple": "#7B2CBF",
}
_BACKGROUNDS = {
    "white": (246, 246, 246),
    "blue": (158, 208, 245),
    "green": (172, 226, 158),
    "yellow": (255, 238, 128),
    "pink": (252, 190, 210),
    "gray": (128, 137, 146),
}
# Value -> the drawings that show it; which of them is drawn is nuisance, taken from the seed.
_HAIR = {
    "short": ("CAESAR", "SHORT_FLAT", "SHORT_ROUND"),
    "long": ("STRAIGHT_STRAND", "LONG_NOT_TOO_LONG"),
    "curly": ("CURLY", "FRO"),
    "bun": ("BUN",),
    "bald": ("NONE",),
}
_HATS = {"hat": ("HAT",), "beanie": ("WINTER_HAT_3", "WINTER_HAT_1"), "turban": ("TURBAN",)}
_GLASSES = {
    "none": ("NONE",),
    "glasses": ("ROUND", "PRESCRIPTION_2"),
    "sunglasses": ("SUNGLASSES", "WAYFARERS"),
}
_BEARDS = {
    "none": ("NONE",),
    "beard": ("BEARD_MEDIUM", "BEARD_MAGESTIC"),
    "moustache": ("MOUSTACHE_MAGNUM", "MOUSTACHE_FANCY"),
}
_MOUTHS = {"smiling": ("SMILE",), "serious": ("SERIOUS",), "sad": ("SAD",)}
_EYES = ("DEFAULT", "HAPPY", "SIDE")
_EYEBROWS = ("DEFAULT", "DEFAULT_NATURAL", "RAISED_EXCITED")
_NOSES = ("DEFAULT", "WIDE")
_SKINS = ("#FFDBB4", "#EDB98A", "#D08B5B", "#AE5D29")
_CLOTHES = ("SHIRT_CREW_NECK", "SHIRT_V_NECK", "HOODIE")

_MASK = re.compile(r'<mask id="([^"]+)"[^>]*>\s*<use xlink:href="(#[^"]+)" />\s*</mask>')
_MASKED_COLOR = re.compile(
    r'<g id="[^"]*" mask="url\(#([^)]+)\)" fill="(#[0-9A-Fa-f]{6})">\s*'
    r"(?:<g [^>]*>\s*<rect [^>]*/>\s*</g>|<rect [^>]*/>)\s*</g>"
)


def draw(attributes: Mapping[str, str], seed: int, size: int) -> NDArray[np.uint8]:
    """Draw one face: (size, size, 3) uint8 RGB, the same bytes in every process.

    `seed` picks what no caption states: skin, eyes, eyebrows, nose, kind of shirt, drawing within a
    hair style, and the beard's colour where the hair is hidden (else it follows the hair). Raises
    ConfigError, EnvironmentMissing.
    """
    check_attributes(attributes)
    if not 8 <= size <= 1024:
        raise ConfigError(f"picture size {size}", hint="8 to 1024 pixels")
    _, _, body = _compose(attributes, np.random.default_rng([seed, 1])).partition(">")
    body = _flatten(body.rpartition("</svg>")[0])
    layer = np.asarray(render_svg(body, _VIEW_BOX, size * _OVERSAMPLING), np.float32)
    alpha = layer[..., 3:] / 255.0
    background = np.asarray(_BACKGROUNDS[attributes["background"]], np.float32)
    flat = layer[..., :3] * alpha + background * (1.0 - alpha)
    mean = flat.reshape(size, _OVERSAMPLING, size, _OVERSAMPLING, 3).mean((1, 3))
    return np.asarray(np.rint(mean), np.uint8)


def prepare_avatars(
    out: Path, *, count: int, size: int, seed: int, workers: int = 0, variants: int = VARIANTS
) -> None:
    """Draw `count` faces for train, val and test (90 : 5 : 5), and count // 20 more for test_combo.

    Only test_combo shows the pairs of `HELD_OUT_PAIRS`. `workers`: processes, 0 means one per CPU;
    the data set does not depend on it. `variants`: caption templates per language, at most
    VARIANTS. Raises ConfigError, EnvironmentMissing.
    """
    if count < 20:
        raise ConfigError(f"{count} avatars do not fill the splits", hint="ask for at least 20")
    if not 1 <= variants <= VARIANTS:
        raise ConfigError(f"{variants} caption templates", hint=f"1 to {VARIANTS}")
    resvg(), _parts()
    jobs = list(_jobs(count, seed, size, variants))
    info = DataInfo(
        source="avatars",
        size=size,
        seed=seed,
        generator={
            name: metadata.version(name) for name in ("python-avatars", "resvg-py", "numpy")
        },
        licences=("python-avatars: MIT; Avataaars artwork by Pablo Stanley, free for any use",),
    )
    with DataWriter(out, info) as writer:
        for job, sample in zip(jobs, map_processes(_sample, jobs, workers), strict=True):
            writer.add(job.split, sample)


@dataclass(frozen=True)
class _Job:
    split: str
    index: int
    seed: int
    size: int
    variants: int


def _jobs(count: int, seed: int, size: int, variants: int) -> Iterator[_Job]:
    held = max(1, count // 20)
    splits = (
        ["train"] * (count - 2 * held) + ["val"] * held + ["test"] * held + ["test_combo"] * held
    )
    return (_Job(split, index, seed, size, variants) for index, split in enumerate(splits))


def _sample(job: _Job) -> Sample:
    rng = np.random.default_rng([job.seed, job.index])
    held_out = job.split == "test_combo"
    attributes = vocabulary.sample_held_out(rng) if held_out else vocabulary.sample_attributes(rng)
    captions = tuple(
        Caption(language, caption(attributes, language, variant))
        for language in LANGUAGES
        for variant in range(job.variants)
    )
    image = draw(attributes, int(rng.integers(2**31)), job.size)
    return Sample(f"avatar-{job.index:07d}", image, captions, attributes)


def _compose(attributes: Mapping[str, str], rng: np.random.Generator) -> str:
    """The SVG of one face.

    The draws below are made in a fixed order, whatever the attributes are.
    """
    parts = _parts()
    pick = {
        name: rng.random()
        for name in ("top", "glasses", "beard", "eyes", "eyebrows", "nose", "mouth", "clothes")
    }
    skin = _SKINS[int(rng.integers(len(_SKINS)))]
    beard_color = tuple(_HAIR_COLORS)[int(rng.integers(len(_HAIR_COLORS)))]
    hair_color = attributes["hair_color"] if attributes["hair_color"] != HIDDEN else beard_color

    def part(enum: str, name: str, choices: tuple[str, ...]) -> Any:
        return getattr(parts, enum)[choices[int(pick[name] * len(choices))]]

    has_hat = attributes["hat"] != "none"
    avatar = parts.Avatar(
        style=parts.AvatarStyle.TRANSPARENT,
        top=part("HatType", "top", _HATS[attributes["hat"]])
        if has_hat
        else part("HairType", "top", _HAIR[attributes["hair"]]),
        hat_color=_CLOTHES_COLORS[attributes["clothes_color"]],
        eyebrows=part("EyebrowType", "eyebrows", _EYEBROWS),
        eyes=part("EyeType", "eyes", _EYES),
        nose=part("NoseType", "nose", _NOSES),
        mouth=part("MouthType", "mouth", _MOUTHS[attributes["expression"]]),
        facial_hair=part("FacialHairType", "beard", _BEARDS[attributes["beard"]]),
        skin_color=skin,
        hair_color=_HAIR_COLORS[hair_color],
        facial_hair_color=_HAIR_COLORS[hair_color],
        accessory=part("AccessoryType", "glasses", _GLASSES[attributes["glasses"]]),
        clothing=part("ClothingType", "clothes", _CLOTHES),
        clothing_color=_CLOTHES_COLORS[attributes["clothes_color"]],
    )
    return str(avatar.render())


def _flatten(svg: str) -> str:
    """Paint masked colour rectangles as filled paths: the same picture in half the drawing time."""
    paths = dict(_MASK.findall(svg))
    return _MASKED_COLOR.sub(
        lambda match: f'<use fill="{match[2]}" xlink:href="{paths[match[1]]}" />', svg
    )


@functools.cache
def _parts() -> Any:
    return need("python_avatars")
