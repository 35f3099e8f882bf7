"""The codec stage: pictures in, reconstruction and codebook losses out.

The perceptual network and the discriminator, where there are any, live here: outside the model that
the backend owns, so that no engine shards, steps or saves them.
"""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mmprod.config.schema import Config
from mmprod.data.store import Split
from mmprod.errors import ConfigError
from mmprod.models.codec import RESTORED, Codec, build_codec, to_signal
from mmprod.models.losses import PERCEPTUAL_WEIGHT
from mmprod.models.perceptual import SMALLEST, Perceptual, load_perceptual
from mmprod.models.quantizers.base import Quantizer
from mmprod.models.quantizers.book import Book
from mmprod.training.adversary import Adversary
from mmprod.training.sharded_build import Build
from mmprod.training.shares import Indices, Share
from mmprod.training.task import Evaluation

logger = logging.getLogger(__name__)

EVALUATED = 256
"""pictures of the val split that an evaluation measures"""
SHOWN = 8
CHUNK = 32
CODEBOOK = ("quantizer", "codebook_size", "books", "book", "levels")
"""settings that say what the tensors of a codebook mean"""


class CodecTask:
    """Trains a codec on the pictures of `train` (see `Task`)."""

    name = "codec"
    learns_buffers = True

    def __init__(
        self,
        config: Config,
        train: Split,
        val: Split,
        device: torch.device,
        build: Build | None = None,
    ) -> None:
        self._config, self._train, self._val, self._device = config, train, val, device
        with build or nullcontext():
            self._codec = build_codec(config.codec)
        self.model: nn.Module = self._codec
        self.size, self.weights = len(train), train.weights
        self._perceptual = _perceptual(config, device)
        self.codebook = config.codec.model_dump(mode="json", include=set(CODEBOOK))
        self.files = self._perceptual.files if self._perceptual is not None else {}
        self._adversary = (
            Adversary(config.codec, config.codec_train, config.data.image_size, device)
            if config.codec.gan_weight
            else None
        )

    def batch(self, share: Share) -> tuple[Tensor, ...]:
        """(pixels (B, H, W, 3) uint8,), mirrored at random when data.flip."""
        pixels = torch.from_numpy(self._train.images(share.indices))
        if self._config.data.flip:
            mirrored = share.cut(mirror_coins(share))
            pixels = torch.where(mirrored[:, None, None, None], pixels.flip(2), pixels)
        return (pixels.to(self._device),)

    def losses(
        self, outputs: dict[str, Tensor], batch: tuple[Tensor, ...], step: int
    ) -> dict[str, Tensor]:
        """The codec's losses with the terms of the other networks: loss = encoder +
        reconstruction, which holds all weighted terms.
        """
        restored, x = outputs[RESTORED], to_signal(batch[0])
        bf16 = self._config.codec_train.precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            losses = self._with_perceptual(outputs, x)
        if self._adversary is None:
            return losses
        terms = self._adversary.losses(restored, x, step)
        added = self._adversary.weight(step) * terms["generator"] if terms else 0.0
        return _plus(losses, added) | terms

    def _with_perceptual(self, outputs: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """The scalars among `outputs`, and the perceptual term where there is one."""
        losses = {name: value for name, value in outputs.items() if name != RESTORED}
        if self._perceptual is None:
            return losses
        term = self._perceptual.distance(outputs[RESTORED], x).mean()
        return _plus(losses, PERCEPTUAL_WEIGHT * term) | {"perceptual": term}

    def keys(self, indices: Indices) -> list[str]:
        return self._train.keys(indices)

    def after_step(self, *, learn: bool = True) -> dict[str, float]:
        if not learn:
            self._forget()
            return {}
        judged = self._adversary.update() if self._adversary is not None else {}
        return {**self._codec.quantizer.update(), **judged}

    def _forget(self) -> None:
        """Nothing of this batch moves the codebook or the discriminator."""
        for module in self._codec.quantizer.modules():
            if isinstance(module, (Quantizer, Book)):
                module.forget()
        if self._adversary is not None:
            self._adversary.forget()

    def state(self) -> dict[str, Tensor]:
        return self._adversary.state() if self._adversary is not None else {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if self._adversary is not None:
            self._adversary.load_state(state)

    def beside(self) -> list[Tensor]:
        perceptual = self._perceptual.state_dict().values() if self._perceptual is not None else ()
        return [*perceptual, *(self._adversary.tensors() if self._adversary is not None else ())]

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
                found = self._with_perceptual(model(chunk), to_signal(chunk))
                losses += float(found["loss"]) * len(chunk)
                used.update(codes.flatten().tolist())
        output = np.concatenate(restored)
        metrics = {
            "psnr": psnr(pixels, output),
            "loss": losses / count,
            "codes_used": len(used) / model.quantizer.codebook_size,
        }
        return Evaluation(metrics, grid_of([pixels[:SHOWN], output[:SHOWN]]))

    def better(self, metrics: dict[str, float], step: int) -> float:
        """psnr; with loss = natural the negative loss, which psnr would contradict. With a
        discriminator the step itself: no figure of distortion may choose weights from before its
        start, so the last averaged ones count.
        """
        if self._adversary is not None:
            return float(step)
        return -metrics["loss"] if self._config.codec.loss == "natural" else metrics["psnr"]

    def core(self, model: nn.Module) -> nn.Module:
        return model


def _plus(losses: dict[str, Tensor], added: Tensor | float) -> dict[str, Tensor]:
    """`added`, already weighted, counts as a part of L_reconstruction."""
    both = {name: losses[name] + added for name in ("loss", "reconstruction")}
    return losses | both


def _perceptual(config: Config, device: torch.device) -> Perceptual | None:
    """The network for loss = natural, from the user's file. Says what is used without one."""
    cfg, size = config.codec, config.data.image_size
    if cfg.loss != "natural":
        return None
    if not cfg.perceptual:
        logger.info(
            "natural: no perceptual weights given (codec.perceptual), so edges at several scales "
            "and MS-SSIM take their place"
        )
        return None
    if size < SMALLEST:
        raise ConfigError(
            f"codec.perceptual: pictures of {size} pixels are too small for VGG16",
            hint=f"data.image_size of at least {SMALLEST}, or codec.perceptual empty",
        )
    heads = Path(cfg.perceptual_heads) if cfg.perceptual_heads else None
    return load_perceptual(Path(cfg.perceptual), heads).to(device)


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
