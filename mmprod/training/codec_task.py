"""The codec stage: pictures in, reconstruction and codebook losses out."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mmprod.config.schema import Config
from mmprod.data.store import Split
from mmprod.models.codec import Codec, build_codec
from mmprod.training.shares import Indices, Share
from mmprod.training.task import Evaluation

EVALUATED = 256
"""pictures of the val split that an evaluation measures"""
SHOWN = 8
CHUNK = 32


class CodecTask:
    """Trains a codec on the pictures of `train` (see `Task`)."""

    name = "codec"
    learns_buffers = True

    def __init__(self, config: Config, train: Split, val: Split, device: torch.device) -> None:
        self._config, self._train, self._val, self._device = config, train, val, device
        self._codec = build_codec(config.codec)
        self.model: nn.Module = self._codec
        self.size, self.weights = len(train), train.weights

    def batch(self, share: Share) -> tuple[Tensor, ...]:
        """(pixels (B, H, W, 3) uint8,), mirrored at random when data.flip."""
        pixels = torch.from_numpy(self._train.images(share.indices))
        if self._config.data.flip:
            mirrored = share.cut(mirror_coins(share))
            pixels = torch.where(mirrored[:, None, None, None], pixels.flip(2), pixels)
        return (pixels.to(self._device),)

    def keys(self, indices: Indices) -> list[str]:
        return self._train.keys(indices)

    def after_step(self) -> dict[str, float]:
        return self._codec.quantizer.update()

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Reconstructs pictures of `val`: psnr (dB, over all pixels), loss, usage (share of codes
        that occurred).
        """
        if not isinstance(model, Codec):
            raise TypeError(f"expected a Codec, got {type(model).__name__}")
        count = min(EVALUATED, len(self._val))
        pixels = self._val.images(np.arange(count))
        side = self._config.data.image_size // self._config.codec.factor
        restored, losses, used = [], 0.0, set[int]()
        with torch.no_grad():
            for start in range(0, count, CHUNK):
                chunk = torch.from_numpy(pixels[start : start + CHUNK]).to(self._device)
                codes = model.encode(chunk)
                restored.append(model.decode(codes, (side, side)).cpu().numpy())
                losses += float(model(chunk)["loss"]) * len(chunk)
                used.update(codes.flatten().tolist())
        output = np.concatenate(restored)
        metrics = {
            "psnr": psnr(pixels, output),
            "loss": losses / count,
            "codes_used": len(used) / self._config.codec.codebook_size,
        }
        return Evaluation(metrics, grid_of([pixels[:SHOWN], output[:SHOWN]]))

    def better(self, metrics: dict[str, float]) -> float:
        return metrics["psnr"]

    def core(self, model: nn.Module) -> nn.Module:
        return model


def mirror_coins(share: Share) -> Tensor:
    """Which samples of the global batch are mirrored: (B,) bool."""
    return torch.rand(len(share.batch), generator=share.generator("mirror")) < 0.5


def psnr(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB over all values; at most 100."""
    error = float(np.square(a.astype(np.float64) - b).mean())
    return 10 * math.log10(255.0**2 / max(error, 255.0**2 * 1e-10))


def grid_of(rows: list[npt.NDArray[np.uint8]], gap: int = 2) -> npt.NDArray[np.uint8]:
    """Rows of pictures (n, H, W, 3) -> one picture (H', W', 3) with white gaps; rows may be of
    different length.
    """
    height, width = rows[0].shape[1:3]
    columns = max(len(row) for row in rows)
    out = np.full(
        (len(rows) * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8
    )
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            top, left = gap + y * (height + gap), gap + x * (width + gap)
            out[top : top + height, left : left + width] = picture
    return out
