"""Picture files for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without noise."""
    y, x = np.mgrid[:height, :width]
    channels = [np.sin(y / 9 + c) * 60 + np.cos(x / 7 - c) * 60 + 128 for c in range(3)]
    return np.stack(channels, -1).clip(0, 255).astype(np.uint8)


def write(path: Path, height: int = 37, width: int = 50, mode: str = "RGB") -> Path:
    Image.fromarray(smooth(height, width)).convert(mode).save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))
