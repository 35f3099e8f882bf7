"""Codebook usage race: our default against plain vector quantization, `python tools/usage.py`.

K = 16384, D = 8, 64 px, batch 64, the layers of preset `tiny`, its loss, its learning rate with
warm-up and cosine and its betas (Adam), and the same batches for both.
Plain VQ is the quantizer of VQ-VAE as VQGAN and diffusers ship it: codes uniform in (-1/K, 1/K),
moved by gradients (van den Oord et al. 2017, eq. 3). Prints usage (share of codes seen in the last
65,536 tokens), perplexity and PSNR of the current batch. A window of 65,536 tokens shows at most
98.2 % of 16,384 codes even when all are equally likely.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprod.config.load import load_config
from mmprod.config.schema import CodecConfig, Config, DataConfig
from mmprod.data.order import global_batch
from mmprod.data.store import open_split
from mmprod.models.codec import Codec, build_codec, to_signal
from mmprod.models.losses import reconstruction_terms, weighted_sum
from mmprod.models.quantizers.base import Quantized, Quantizer, codes_of, grid_of, rows_of
from mmprod.models.quantizers.gradients import straight_through
from mmprod.models.quantizers.search import nearest, nearest_in_graph
from mmprod.training.backend import set_rate
from mmprod.training.prepare import prepare_data
from mmprod.training.schedule import learning_rate

SHOWN = (25, 50, 100, 200, 400, 600, 800, 1000)


class PlainQuantizer(Quantizer):
    """Codes as a parameter, uniform in (-1/K, 1/K): no averages, no restart, no normalization."""

    def __init__(self, codebook_size: int, dim: int, commitment: float) -> None:
        super().__init__(codebook_size, dim)
        self.commitment = commitment
        self.weight = nn.Parameter(torch.empty(codebook_size, dim))
        nn.init.uniform_(self.weight, -1 / codebook_size, 1 / codebook_size)

    def forward(self, z: Tensor) -> Quantized:
        flat = rows_of(z.float())
        ids = nearest(flat.detach(), self.weight.detach(), unit=False)
        chosen = F.embedding(ids, self.weight)
        loss = F.mse_loss(chosen, flat.detach()) + self.commitment * F.mse_loss(
            flat, chosen.detach()
        )
        self._count(ids[:, None], flat, chosen)
        latents = grid_of(straight_through(flat, chosen), z)
        return Quantized(latents, codes_of(ids[:, None], len(z)), loss)

    def encode(self, z: Tensor) -> Tensor:
        return nearest_in_graph(z.flatten(2).transpose(1, 2), self.weight, unit=False).int()

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        return F.embedding(codes.long(), self.weight).transpose(1, 2).unflatten(2, grid)

    def table(self) -> Tensor:
        return self.weight.detach()


def race(codec: Codec, pictures: Any, options: argparse.Namespace) -> list[dict[str, float]]:
    """Train `codec` for options.steps; the readouts at SHOWN steps."""
    schedule = options.schedule
    optimizer = torch.optim.Adam(codec.parameters(), lr=schedule.lr, betas=schedule.betas)
    rows, started = [], time.perf_counter()
    for step in range(1, options.steps + 1):
        indices = global_batch(0, step - 1, options.batch, len(pictures))
        x = to_signal(torch.from_numpy(pictures.images(indices)))
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            quantized = codec.quantizer(codec.encoder(x))
            restored = codec.decoder(quantized.latents).float()
        error = F.mse_loss(restored.detach(), x)
        terms = reconstruction_terms(restored, x, codec.loss_weights)
        set_rate(optimizer.param_groups, learning_rate(schedule, step - 1))
        optimizer.zero_grad()
        (quantized.encoder_loss + weighted_sum(terms, codec.loss_weights)).backward()
        optimizer.step()
        readout = codec.quantizer.update()
        if step in SHOWN or step == options.steps:
            psnr = 10 * np.log10(4 / float(error))
            rows.append({"step": step, **readout, "psnr": float(psnr)})
            spent = (time.perf_counter() - started) / step
            sys.stdout.write(
                f"{step:5d}  usage {readout['usage']:6.1%}  perplexity "
                f"{readout['perplexity']:8.0f}  psnr {psnr:5.2f} dB  snr {readout['snr']:5.1f} dB  "
                f"{spent:.2f} s/step\n"
            )
            sys.stdout.flush()
    return rows


def main() -> int:
    """Race both quantizers, print the figures, write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="prepared data set; empty: avatars, drawn anew")
    parser.add_argument("--count", type=int, default=4000, help="avatars to draw")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, help="peak; without: that of the preset")
    parser.add_argument("--rate-weight", type=float, default=0.0, help="of ours; below 0: even")
    parser.add_argument("--size", type=int, default=16384, help="codes")
    parser.add_argument("--only", choices=("ours", "plain"), help="one of the two")
    parser.add_argument("--bf16", action="store_true", help="convolutions in bf16")
    parser.add_argument("--json", default="", help="file to write the figures to")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    preset = load_config("tiny")
    options.schedule = preset.codec_train.model_copy(
        update={"steps": options.steps, "lr": options.lr or preset.codec_train.lr}
    )
    changes: dict[str, Any] = {
        "codebook_size": options.size,
        "code_dim": 8,
        "rate_weight": options.rate_weight,
    }
    cfg = CodecConfig(**preset.codec.model_dump() | changes)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(options.data) if options.data else Path(folder) / "data"
        if not options.data:
            prepare_data(Config(codec=cfg, data=DataConfig(count=options.count)), None, root)
        pictures = open_split(root, "train")
        found = {}
        for name in ("ours", "plain"):
            if options.only not in (None, name):
                continue
            torch.manual_seed(0)
            codec = build_codec(cfg).train()
            if name == "plain":
                codec.quantizer = PlainQuantizer(options.size, 8, cfg.commitment)
            loss = " + ".join(f"{weight:g} {term}" for term, weight in codec.loss_weights.items())
            sys.stdout.write(
                f"{name}: K {options.size}, D 8, batch {options.batch}; loss {cfg.loss} ({loss}); "
                f"rate {options.schedule.lr:g} after {options.schedule.warmup} steps, cosine\n"
            )
            found[name] = race(codec, pictures, options)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
