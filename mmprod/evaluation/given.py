"""Figures that need weights: the user gives them, nothing is downloaded, and every figure's name
says whose weights they were.

"LPIPS (vgg, v0.1)" is said only of the published files: torchvision's VGG16, whose own file name
carries the first digits of its hash, with the heads of LPIPS 0.1. Everything else is an LPIPS-like
distance, and every Frechet distance is named after its feature extractor (see frechet.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmprod.evaluation.frechet import distance_name, fit_gaussian, frechet_distance
from mmprod.evaluation.pictures import Pixels
from mmprod.evaluation.rate import Judge
from mmprod.manifest import sha256_file

if TYPE_CHECKING:
    from mmprod.models.perceptual import Perceptual
    from mmprod.runners.ort import FeatureGraph

VGG16_TRUNK = "397923af"
"""First digits of the SHA-256 of torchvision's vgg16-397923af.pth."""
LPIPS_HEADS = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"
"""SHA-256 of vgg.pth of LPIPS 0.1."""
BATCH = 16


def lpips_judge(trunk: Path, heads: Path | None) -> Judge:
    """The mean LPIPS, or LPIPS-like, distance from VGG16 weights (see models/perceptual.py)."""
    from mmprod.models.perceptual import load_perceptual

    net = load_perceptual(trunk, heads)
    name = lpips_name(trunk.name, net.trunk_sha256, net.heads_sha256)
    return lambda pictures, restored: {name: _distance(net, pictures, restored)}


def lpips_name(file: str, trunk_sha256: str, heads_sha256: str) -> str:
    """What a perceptual distance with these weights may be called."""
    if trunk_sha256.startswith(VGG16_TRUNK) and heads_sha256 == LPIPS_HEADS:
        return "LPIPS (vgg, v0.1)"
    heads = f"heads {heads_sha256[:12]}" if heads_sha256 else "no heads"
    return f"LPIPS-like distance [{file}, sha256 {trunk_sha256[:12]}, {heads}]"


def frechet_judge(path: Path) -> Judge:
    """The Frechet distance between originals and restored pictures in the features of a graph."""
    from mmprod.runners.ort import FeatureGraph

    graph, sha256 = FeatureGraph(path), sha256_file(path)
    return frechet_of(lambda x: features(graph, x), f"{path.name}, sha256 {sha256[:12]}")


def frechet_of(extract: Callable[[Pixels], npt.NDArray[np.floating]], named: str) -> Judge:
    """The Frechet distance between two sets of pictures in features (B, F) called `named`."""

    def judge(pictures: Pixels, restored: Pixels) -> Mapping[str, float]:
        a, b = (fit_gaussian(extract(x)) for x in (pictures, restored))
        return {distance_name(named, len(restored)): frechet_distance(a, b)}

    return judge


def all_of(judges: list[Judge]) -> Judge | None:
    """The figures of several judges together; None where there are none."""
    if not judges:
        return None
    return lambda a, b: {name: value for judge in judges for name, value in judge(a, b).items()}


def features(graph: FeatureGraph, pictures: Pixels) -> npt.NDArray[np.float64]:
    """pictures (B, H, W, 3) uint8 -> (B, F): scaled to the graph's size, maps averaged over places,
    anything else flattened.
    """
    sized = _resized(pictures, graph.side) if graph.side else pictures
    step = graph.batch or BATCH
    rows = []
    for start in range(0, len(sized), step):
        part = sized[start : start + step]
        short = step - len(part) if graph.batch else 0
        padded = np.concatenate([part, np.repeat(part[-1:], short, axis=0)]) if short else part
        found = np.asarray(graph(padded)[: len(part)], np.float64)
        rows.append(found.mean(axis=(2, 3)) if found.ndim == 4 else found.reshape(len(part), -1))
    return np.concatenate(rows)


def _resized(pictures: Pixels, side: int) -> Pixels:
    if pictures.shape[1:3] == (side, side):
        return pictures
    resized = (
        Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR)
        for picture in pictures
    )
    return np.stack([np.asarray(picture, np.uint8) for picture in resized])


def _distance(net: Perceptual, pictures: Pixels, restored: Pixels) -> float:
    """Mean over pictures."""
    import torch

    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(pictures), BATCH):
            a, b = (
                torch.from_numpy(x[start : start + BATCH]).permute(0, 3, 1, 2) / 127.5 - 1
                for x in (pictures, restored)
            )
            total += float(net.distance(a, b).sum(dtype=torch.float64))
    return total / len(pictures)
