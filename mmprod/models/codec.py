"""VQ-VAE codec: picture <-> discrete codes.

After VQ-VAE (van den Oord et al. 2017) and the VQGAN layout (Esser et al. 2021, appendix A). Its
discriminator and perceptual network are no part of this model: see training/adversary.py and
models/perceptual.py.

    pixels uint8 (B, H, W, 3) --normalize--> x (B, 3, H, W) in [-1, 1]
        --patch--> --E: conv, levels of residual blocks, strided down--> Z (B, D, h, w)
        --Q: nearest code--> codes (B, N) --lookup--> V (B, D, h, w)
        --D: mirror of E--> X' (B, 3, H, W) --round--> pixels uint8

Losses, in the terms of the design: L_total = L_encoder + L_reconstruction (see losses.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprod.config.schema import CodecConfig
from mmprod.models.blocks import AttentionBlock, Downsample, ResidualBlock, Upsample, norm
from mmprod.models.losses import loss_weights, reconstruction_terms, weighted_sum
from mmprod.models.quantizers.build import build_quantizer

RESTORED = "restored"
"""name of the restored pictures among the outputs of `Codec.forward`"""


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
        self.loss_weights = loss_weights(cfg)
        self.encoder = Encoder(cfg)
        self.quantizer = build_quantizer(cfg)
        self.decoder = Decoder(cfg)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """pixels (B, H, W, 3) uint8 -> losses: loss = encoder + reconstruction, the terms of
        reconstruction by name, without their weights; and restored (B, 3, H, W) float32, which the
        terms of other networks start from.
        """
        x = to_signal(pixels)
        quantized = self.quantizer(self.encoder(x))
        restored = self.decoder(quantized.latents).float()
        terms = reconstruction_terms(restored, x, self.loss_weights)
        reconstruction = weighted_sum(terms, self.loss_weights)
        return {
            "loss": quantized.encoder_loss + reconstruction,
            "encoder": quantized.encoder_loss,
            "reconstruction": reconstruction,
            **terms,
            RESTORED: restored,
        }

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels (B, H, W, 3) uint8 -> codes (B, N) int32, row-major, plane after plane."""
        return self.quantizer.encode(self.encoder(to_signal(pixels)))

    def rivals(self, pixels: Tensor, count: int = 9) -> tuple[Tensor, Tensor] | None:
        """What `encode` nearly chose, for comparisons; see `Quantizer.rivals`."""
        return self.quantizer.rivals(self.encoder(to_signal(pixels)), count)

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """codes (B, N) integer in [0, K) -> pixels (B, H, W, 3) uint8."""
        return to_pixels(self.decoder(self.quantizer.decode(codes, grid)))


def build_codec(cfg: CodecConfig) -> Codec:
    """A codec with fresh weights."""
    return Codec(cfg)
