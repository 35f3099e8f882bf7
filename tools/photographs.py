"""Photographs to measure the codec with, drawn from packages: 24 for tests, patches of others.

    python tools/photographs.py OUT

writes OUT/patches/{train,val}/*.png (squares cut at random places and scales from nature
photographs of Debian's mate-backgrounds and plasma-workspace-wallpapers) and OUT/test/*.png (24
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
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

PACKAGES = ("mate-backgrounds", "plasma-workspace-wallpapers", "lomiri-wallpapers-16.04")
TESTS, TEST_SIDE, PATCH_SIDE = 24, 256, 64
PATCHES = {"train": 12000, "val": 400}
SMALLEST_CUT = 0.1
"""Share of the photograph's height"""
NO_PHOTOGRAPHS = ("analogpattern", "umang")
MATE = (
    *("Aqua", "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow"),
    *("LadyBird", "RainDrops", "Storm", "TwoWings", "Wood", "YellowFlower"),
)
PLASMA = (
    *("BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf"),
    *("Grey", "Kite", "OneStandsOut", "Path", "summer_1am"),
)


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
    side = round(limit * (SMALLEST_CUT + (1 - SMALLEST_CUT) * float(rng.random()) ** 0.5))
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
