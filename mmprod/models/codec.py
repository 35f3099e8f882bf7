"""VQ-VAE codec: picture <-> discrete codes.

After VQ-VAE (van den Oord et al. 2017) and the VQGAN layout (Esser et al. 2021, appendix A),
without its discriminator.

    pixels uint8 (B, H, W, 3) --normalize--> x (B, 3, H, W) in [-1, 1]
        --patch--> --E: conv, levels of residual blocks, strided down--> Z (B, D, h, w)
        --Q: nearest code--> codes (B, N) --lookup--> V (B, D, h, w)
        --D: mirror of E--> X' (B, 3, H, W) --round--> pixels uint8

Losses, in the terms of the design: L_total = L_encoder + L_reconstruction.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprod.config.schema import CodecConfig
from mmprod.models.blocks import AttentionBlock, Downsample, ResidualBlock, Upsample, norm
from mmprod.models.quantizers.spherical import SphericalQuantizer


def to_signal(pixels: Tensor) -> Tensor:
    """pixels (B, H, W, 3) uint8 -> x (B, 3, H, W) float32 in [-1, 1]. The only place where pixels
    are normalized.
    """
    return pixels.to(torch.float32).permute(0, 3, 1, 2) * (1 / 127.5) - 1.0


def to_pixels(x: Tensor) -> Tensor:
    """x (B, 3, H, W) float -> pixels (B, H, W, 3) uint8, rounded half to even, clipped."""
    levels = torch.round(x.to(torch.float32) * 127.5 + 127.5)
    return levels.clamp(0.0, 255.0).permute(0, 2, 3, 1).to(torch.uint8)


class Encoder(nn.Module):
    """E: x (B, 3, H, W) -> z (B, D, h, w)."""

    def __init__(self, cfg: CodecConfig) -> None:
        super().__init__()
        widths = [cfg.channels * m for m in cfg.multipliers]
        layers: list[nn.Module] = [nn.PixelUnshuffle(cfg.patch)] if cfg.patch > 1 else []
        layers.append(nn.Conv2d(3 * cfg.patch**2, widths[0], 3, padding=1))
        current = widths[0]
        for level, width in enumerate(widths):
            layers += [Downsample(current)] if level else []
            for _ in range(cfg.blocks):
                layers.append(ResidualBlock(current, width))
                current = width
        layers.append(ResidualBlock(current))
        layers += [AttentionBlock(current)] if cfg.attention else []
        layers += [norm(current), nn.SiLU(), nn.Conv2d(current, cfg.code_dim, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layers(x)
        return z


class Decoder(nn.Module):
    """D: v (B, D, h, w) -> x' (B, 3, H, W)."""

    def __init__(self, cfg: CodecConfig) -> None:
        super().__init__()
        widths = [cfg.channels * m for m in reversed(cfg.multipliers)]
        current = widths[0]
        layers: list[nn.Module] = [
            nn.Conv2d(cfg.code_dim, current, 3, padding=1),
            ResidualBlock(current),
        ]
        layers += [AttentionBlock(current)] if cfg.attention else []
        for level, width in enumerate(widths):
            layers += [Upsample(current)] if level else []
            for _ in range(cfg.blocks):
                layers.append(ResidualBlock(current, width))
                current = width
        layers += [norm(current), nn.SiLU(), nn.Conv2d(current, 3 * cfg.patch**2, 3, padding=1)]
        layers += [nn.PixelShuffle(cfg.patch)] if cfg.patch > 1 else []
        self.layers = nn.Sequential(*layers)

    def forward(self, v: Tensor) -> Tensor:
        x: Tensor = self.layers(v)
        return x


class Codec(nn.Module):
    """Encoder, quantizer and decoder. In training call it on pixels; for use call `encode` and
    `decode`.
    """

    def __init__(self, cfg: CodecConfig) -> None:
        super().__init__()
        self.loss_preset = cfg.loss
        self.encoder = Encoder(cfg)
        self.quantizer = SphericalQuantizer(
            cfg.codebook_size,
            cfg.code_dim,
            decay=cfg.ema_decay,
            commitment=cfg.commitment,
            restart=cfg.restart,
        )
        self.decoder = Decoder(cfg)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """pixels (B, H, W, 3) uint8 -> losses: loss = encoder + reconstruction."""
        x = to_signal(pixels)
        quantized = self.quantizer(self.encoder(x))
        restored = self.decoder(quantized.latents).float()
        reconstruction = reconstruction_loss(restored, x, self.loss_preset)
        return {
            "loss": quantized.encoder_loss + reconstruction,
            "encoder": quantized.encoder_loss,
            "reconstruction": reconstruction,
        }

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels (B, H, W, 3) uint8 -> codes (B, N) int32, row-major over the grid."""
        return self.quantizer.encode(self.encoder(to_signal(pixels)))

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """codes (B, N) integer in [0, K) -> pixels (B, H, W, 3) uint8."""
        return to_pixels(self.decoder(self.quantizer.decode(codes, grid)))


def reconstruction_loss(restored: Tensor, x: Tensor, preset: str) -> Tensor:
    """-log p(x|z') up to constants: Laplace (L1) and Gauss (L2) terms; `natural` adds L1 of the
    image gradient.

    restored, x (B, 3, H, W) in [-1, 1] -> scalar.
    """
    loss = F.l1_loss(restored, x) + F.mse_loss(restored, x)
    if preset == "natural":
        for axis in (2, 3):
            loss = loss + F.l1_loss(restored.diff(dim=axis), x.diff(dim=axis))
    return loss


def build_codec(cfg: CodecConfig) -> Codec:
    """A codec with fresh weights."""
    return Codec(cfg)
