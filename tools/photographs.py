"""Photographs to measure the codec with, drawn from packages: 24 for tests, patches of others.

    python tools/photographs.py OUT

writes OUT/patches/{train,val}/*.png (squares cut at random places and scales from photographs of
Debian's gcompris-qt-data, mate-backgrounds, plasma-workspace-wallpapers, lomiri-wallpapers-20.04
and palapeli-data) and OUT/test/*.png (24
photographs, 256 x 256: 13 of Debian's lomiri-wallpapers-16.04, 9 of scikit-image, 2 of
scikit-learn; extras `dev` and `bench`). Pictures of an earlier run in these folders are removed. No
test photograph is among those that patches are cut from. The packages are fetched with `apt-get
download` into OUT/packages; their licences (GPL-2+, CC-BY, CC-BY-SA, CC0) are named there and bind
what is made of the pictures: nothing of it is part of mmprod.
Then: mmprod data prepare folder OUT/patches --out data/photographs --size 64
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

PACKAGES = (
    *("mate-backgrounds", "plasma-workspace-wallpapers", "lomiri-wallpapers-16.04"),
    *("lomiri-wallpapers-20.04", "palapeli-data", "gcompris-qt-data"),
)
TESTS, TEST_SIDE, PATCH_SIDE = 24, 256, 64
PATCHES = {"train": 24000, "val": 400}
SMALLEST_CUT = 0.1
"""Share of the photograph's height, and at least PATCH_SIDE pixels"""
NO_PHOTOGRAPHS = ("analogpattern", "umang")
MATE = (
    *("Aqua", "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow"),
    *("LadyBird", "RainDrops", "Storm", "TwoWings", "Wood", "YellowFlower"),
)
PLASMA = (
    *("BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf"),
    *("Grey", "Kite", "OneStandsOut", "Path", "summer_1am"),
)
LOMIRI_20 = ("Fossa_by_Jasper_Roks", "Infinite-Sea_by_Aury88", "Kleiber_by_Lukas_Baubkus")
GCOMPRIS = (
    *("categorization", "erase", "explore_farm_animals", "explore_monuments"),
    *("explore_world_animals", "explore_world_music"),
)
"""its activities that show photographs"""
SMALLEST_PHOTOGRAPH = 192
"""pixels; what is smaller, or transparent, is a drawing or an icon there"""


def check_tools() -> None:
    """Everything needed is there before anything is fetched or removed. Raises SystemExit."""
    missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"needs {' and '.join(missing)}: run it on Debian or Ubuntu")
    modules = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
    missing = [own for name, own in modules.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"needs {' and '.join(missing)}: "
            'pip install -c constraints.txt -e ".[dev,bench]" installs both'
        )


def empty(folder: Path) -> Path:
    """The folder without the pictures of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in folder.glob("*.png"):
        picture.unlink()
    return folder


def fetch(folder: Path) -> None:
    """Download and unpack the packages that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        target = folder / package
        if target.is_dir():
            continue
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        archive = next(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, target.with_suffix(".part")], check=True)
        target.with_suffix(".part").rename(target)


def one(folder: Path, pattern: str) -> Image.Image:
    """The largest picture that matches, RGB. Raises SystemExit where none does."""
    found = sorted(folder.rglob(pattern), key=lambda path: path.stat().st_size)
    if not found:
        raise SystemExit(
            f"{folder} holds no {pattern}: the package has changed; the sets would too"
        )
    return Image.open(found[-1]).convert("RGB")


def training(folder: Path) -> Iterator[Image.Image]:
    """The photographs that patches are cut from, one per scene."""
    for name in MATE:
        yield one(folder / "mate-backgrounds", f"{name}.jpg")
    for name in PLASMA:
        yield one(folder / "plasma-workspace-wallpapers", f"{name}/contents/images/*.jpg")
    for name in LOMIRI_20:
        yield one(folder / "lomiri-wallpapers-20.04", f"{name}.jpg")
    for path in sorted((folder / "palapeli-data").rglob("*.jpg")):
        yield Image.open(path).convert("RGB")
    for name in GCOMPRIS:
        yield from carved(next((folder / "gcompris-qt-data").rglob(f"{name}.rcc")))


def carved(resources: Path) -> Iterator[Image.Image]:
    """The photographs in a Qt resource file, which holds whole WebP files one after another."""
    content, place = resources.read_bytes(), 0
    while (place := content.find(b"RIFF", place)) >= 0:
        length = int.from_bytes(content[place + 4 : place + 8], "little") + 8
        found, place = content[place : place + length], place + 4
        if found[8:12] != b"WEBP":
            continue
        place += length - 4
        try:
            picture = Image.open(io.BytesIO(found))
            picture.load()
        except (UnidentifiedImageError, OSError):  # these bytes only looked like a picture
            continue
        clear = picture.mode == "RGBA" and picture.getextrema()[3][0] < 255
        if not clear and min(picture.size) >= SMALLEST_PHOTOGRAPH:
            yield picture.convert("RGB")


def testing(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    """The 24 test photographs with their names."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    for path in sorted((folder / "lomiri-wallpapers-16.04").rglob("16.04/*.jpg")) or sorted(
        (folder / "lomiri-wallpapers-16.04").rglob("*.jpg")
    ):
        if not path.name.startswith(NO_PHOTOGRAPHS):
            yield path.stem, Image.open(path).convert("RGB")
    for name in ("astronaut", "coffee", "cat", "rocket", "hubble_deep_field", "retina", "grass"):
        yield name, Image.fromarray(getattr(data, name)()).convert("RGB")
    yield "histology", Image.fromarray(data.immunohistochemistry()).convert("RGB")
    yield "motorcycle", Image.fromarray(data.stereo_motorcycle()[0]).convert("RGB")
    for name in ("china.jpg", "flower.jpg"):
        yield name.removesuffix(".jpg"), Image.fromarray(load_sample_image(name))


def cut(photograph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random square, mostly a large one (small ones are smooth), turned and mirrored."""
    limit = min(photograph.size)
    smallest = max(SMALLEST_CUT, PATCH_SIDE / limit)
    side = round(limit * (smallest + (1 - smallest) * float(rng.random()) ** 0.5))
    left = int(rng.integers(photograph.width - side + 1))
    top = int(rng.integers(photograph.height - side + 1))
    box = (left, top, left + side, top + side)
    patch = photograph.resize((PATCH_SIDE, PATCH_SIDE), Image.Resampling.LANCZOS, box)
    patch = patch.rotate(90 * int(rng.integers(4)))
    return ImageOps.mirror(patch) if rng.random() < 0.5 else patch


def main() -> int:
    """Write both sets."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    check_tools()
    fetch(out / "packages")
    tests, photographs = dict(testing(out / "packages")), list(training(out / "packages"))
    if len(tests) != TESTS:
        raise SystemExit(f"found {len(tests)} test photographs, not {TESTS}: {', '.join(tests)}")
    empty(out / "test")
    for name, photograph in tests.items():
        square = ImageOps.fit(photograph, (TEST_SIDE, TEST_SIDE), Image.Resampling.LANCZOS)
        square.save(out / "test" / f"{name}.png")
    rng = np.random.default_rng(0)
    for split, count in PATCHES.items():
        empty(out / "patches" / split)
        for index in range(count):
            patch = cut(photographs[index % len(photographs)], rng)
            patch.save(out / "patches" / split / f"{index:05d}.png")
    sys.stdout.write(f"{out}: {len(tests)} test photographs, ")
    sys.stdout.write(f"{PATCHES['train']} patches of {len(photographs)} others\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
