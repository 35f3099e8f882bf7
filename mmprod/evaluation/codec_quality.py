"""What a codec costs and keeps, measured on held-out pictures: bits, PSNR, SSIM, size.

Bits are counted without any header, in two ways. *Fixed*: log2 of the codes of a plane for every
token. *Coded*: the cross-entropy of the tokens under the static table, which is what a range coder
needs that knows how often each code occurred in training (the quantizer's `rate`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmprod.config.schema import Config
from mmprod.evaluation.pictures import Pixels, ms_ssim, psnr, ssim
from mmprod.models.codec import Codec, build_codec

BATCH = 32
EVEN = 2.0**-8
"""Share of a table that is dealt evenly over the codes of a plane, as the bitstream does it: a code
never seen in training costs few bits more than with fixed length."""


@dataclass(frozen=True)
class CodecQuality:
    """Means over pictures; bits for one token, `bpp` bits for one pixel."""

    pictures: int
    tokens: int
    """of one picture, all planes"""
    fixed_bits: float
    coded_bits: float
    fixed_bpp: float
    coded_bpp: float
    psnr: float
    ssim: float
    ms_ssim: float
    seen: float
    """share of the codes that occur in these pictures"""
    encoder_parameters: int
    decoder_parameters: int
    table_values: int
    """numbers of the codebook, which encoder and decoder both need"""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_codec(codec: Codec, pictures: Pixels, grid: int) -> CodecQuality:
    """Encode and decode pictures (B, S, S, 3) uint8 with S = grid x the codec's factor."""
    codes, restored = _round_trip(codec, pictures, grid)
    planes = codes.shape[1] // grid**2
    rate = codec.quantizer.rate.cpu().numpy()
    fixed, coded = math.log2(len(rate) / planes), static_bits(codes, rate, planes)
    per_pixel = codes.shape[1] / (pictures.shape[1] * pictures.shape[2])
    return CodecQuality(
        pictures=len(pictures),
        tokens=codes.shape[1],
        fixed_bits=fixed,
        coded_bits=coded,
        fixed_bpp=fixed * per_pixel,
        coded_bpp=coded * per_pixel,
        psnr=float(psnr(pictures, restored).mean()),
        ssim=float(ssim(pictures, restored).mean()),
        ms_ssim=float(ms_ssim(pictures, restored).mean()),
        seen=len(np.unique(codes)) / len(rate),
        encoder_parameters=_count(codec.encoder.parameters()),
        decoder_parameters=_count(codec.decoder.parameters()),
        table_values=codec.quantizer.table().numel(),
    )


def static_bits(
    codes: npt.NDArray[np.integer], rate: npt.NDArray[np.floating], planes: int
) -> float:
    """Mean bits for a token under a table of shares.

    codes (B, N) in [0, K), plane after plane; rate (K,) >= 0: share of every code, of which each
    plane has its own K / planes. They are brought to a sum of one within the plane.
    """
    shares = np.asarray(rate, np.float64).reshape(planes, -1)
    size = shares.shape[1]
    totals = shares.sum(axis=1, keepdims=True)
    even = np.full_like(shares, 1 / size)
    shares = np.divide(shares, totals, out=even, where=totals > 0)
    bits = -np.log2((1 - EVEN) * shares + EVEN / size)
    return float(bits.reshape(-1)[np.asarray(codes, np.int64)].mean())


@dataclass(frozen=True)
class CodecCost:
    """What training a codec takes. `gflop`: of one step, forward and backward (twice the forward):
    convolutions and matrix products of encoder and decoder, and the search for codes.
    """

    tokens: int
    """of one picture, all planes"""
    parameters: int
    steps: int
    pictures: int
    """seen in all"""
    gflop: float


def training_cost(config: Config) -> CodecCost:
    """The cost of a configuration's codec stage. Nothing is trained or allocated."""
    cfg, train, side = config.codec, config.codec_train, config.data.image_size
    with torch.device("meta"):
        codec = build_codec(cfg)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            codec.decoder(codec.encoder(torch.zeros(1, 3, side, side)))
    search = 2 * config.latent_positions * cfg.codebook_size * cfg.code_dim
    return CodecCost(
        tokens=config.latent_positions,
        parameters=_count(codec.parameters()),
        steps=train.steps,
        pictures=train.steps * train.batch,
        gflop=(3 * counter.get_total_flops() + search) * train.batch / 1e9,
    )


def _round_trip(codec: Codec, pictures: Pixels, grid: int) -> tuple[npt.NDArray[np.int32], Pixels]:
    codes, restored = [], []
    with torch.inference_mode():
        for start in range(0, len(pictures), BATCH):
            found = codec.encode(torch.from_numpy(pictures[start : start + BATCH]))
            codes.append(found.cpu().numpy())
            restored.append(codec.decode(found, (grid, grid)).cpu().numpy())
    return np.concatenate(codes), np.concatenate(restored)


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
