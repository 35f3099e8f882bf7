"""The training step of the fusion transformer beside a model of the same size of plain
`nn.TransformerEncoder` blocks.

The peer has as many blocks, the same widths, heads, registers, places, tied heads and losses
(`FusionObjective` drives both), pre-norm, GELU with four times the width: as many weights as SwiGLU
of 8/3. Its connector runs over both modalities in one sequence, with one set of weights a block:
where ours has weights per modality (`fusion.joint`), ours has more weights and as many
multiply-adds. The peer has no rotary places, no norms of queries and keys and no map of the code
vectors, and LayerNorm and biases in place of RMSNorm without. Both with fused AdamW and clipping,
on random codes and tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprod.config.load import load_config
from mmprod.config.schema import Dims, FusionConfig
from mmprod.models.fusion import build_fusion
from mmprod.models.fusion_loss import FusionObjective, draw_noise
from tools.bench.measure import Row, Work, best_times, faster

PRESETS = ("tiny", "small")
PEER = "nn.TransformerEncoder"


def blocks(width: int, heads: int, count: int) -> nn.Module:
    """`count` plain blocks, (B, S, D) -> (B, S, D)."""
    layer = nn.TransformerEncoderLayer(
        width,
        heads,
        dim_feedforward=4 * width,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
    return nn.TransformerEncoder(layer, count, enable_nested_tensor=False)


class PlainStream(nn.Module):
    """Tower, decoder, tied head and embedding of one modality; the interface of `Stream`."""

    def __init__(self, vocabulary: int, length: int, cfg: FusionConfig, depths: tuple[int, int]):
        super().__init__()
        self.vocabulary, self.count = vocabulary, cfg.registers
        self.embed = nn.Embedding(vocabulary + 1, cfg.width)
        self.place = nn.Parameter(0.02 * torch.randn(length, cfg.width))
        self.registers = nn.Parameter(0.02 * torch.randn(cfg.registers, cfg.width))
        self.tower, self.decoder = (blocks(cfg.width, cfg.heads, depth) for depth in depths)
        self.head_norm = nn.LayerNorm(cfg.width)
        self.head_bias = nn.Parameter(torch.zeros(vocabulary))
        self.search = nn.Linear(cfg.width, cfg.embedding, bias=False)

    def encode(self, ids: Tensor) -> Tensor:
        """ids (B, S) -> features (B, R+S, D)."""
        x = self.embed(ids) + self.place
        x = torch.cat([self.registers.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        features: Tensor = self.tower(x)
        return features

    def decode(self, x: Tensor) -> Tensor:
        """fused features (B, R+S, D) -> logits (B, S, vocabulary)."""
        return self.predict(self.decode_features(x), self.table())

    def decode_features(self, x: Tensor) -> Tensor:
        """fused features (B, R+S, D) -> what the head reads (B, S, D)."""
        features: Tensor = self.head_norm(self.decoder(x)[:, self.count :])
        return features

    def predict(self, x: Tensor, table: Tensor) -> Tensor:
        """what the head reads (..., D), `table()` -> logits (..., vocabulary)."""
        return F.linear(x, table[: self.vocabulary]).float() + self.head_bias

    def table(self) -> Tensor:
        """The embedding of every id."""
        return self.embed.weight

    def embedding(self, features: Tensor) -> Tensor:
        """features (B, R+S, D) -> unit vectors (B, E)."""
        return F.normalize(self.search(features.mean(1)).float(), dim=1)


class PlainFusion(nn.Module):
    """The whole peer; what `FusionObjective` asks of a model."""

    def __init__(self, cfg: FusionConfig, dims: Dims) -> None:
        super().__init__()
        self.image = PlainStream(
            dims.codebook_size, dims.positions, cfg, (cfg.image_encoder, cfg.image_decoder)
        )
        self.text = PlainStream(
            dims.vocabulary, dims.text_length, cfg, (cfg.text_encoder, cfg.text_decoder)
        )
        self.connector = blocks(cfg.width, cfg.heads, cfg.joint + cfg.shared)
        self.similarity = nn.Parameter(torch.tensor([2.3, -10.0]))

    def fuse(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Both modalities in one sequence, through all blocks of the connector."""
        x = self.connector(torch.cat([image, text], dim=1))
        return x[:, : image.shape[1]], x[:, image.shape[1] :]


def step_of(model: Any, cfg: FusionConfig, dims: Dims, batch: int, *, bf16: bool) -> Work:
    """One optimizer step of a model."""
    objective = FusionObjective(model, cfg, dims).train()
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(dims.codebook_size, (batch, dims.positions), generator=generator)
    tokens = torch.randint(dims.vocabulary, (batch, dims.text_length), generator=generator)
    noise = draw_noise(generator, batch, dims)
    parameters = list(objective.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = objective(codes, tokens, noise)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def rows(rounds: int, batch: int) -> list[Row]:
    """Each preset: fp32 beside fp32, bf16 beside bf16 and, as it is often used, fp32."""
    found = []
    for preset in PRESETS:
        config = load_config(preset)
        cfg, dims = config.fusion, config.dims(config.data.vocabulary)

        def work(build: Any, bf16: bool, cfg: FusionConfig = cfg, dims: Dims = dims) -> Work:
            torch.manual_seed(0)
            return step_of(build(cfg, dims), cfg, dims, batch, bf16=bf16)

        works = {
            "ours fp32": work(build_fusion, False),
            "fp32": work(PlainFusion, False),
            "ours bf16": work(build_fusion, True),
            "bf16": work(PlainFusion, True),
        }
        seconds = best_times(works, rounds)
        what = f"fusion step, {preset}"
        found += [
            faster(f"{what}, fp32", seconds["ours fp32"], f"{PEER}, fp32", seconds["fp32"], 1.0),
            faster(f"{what}, bf16", seconds["ours bf16"], f"{PEER}, bf16", seconds["bf16"], 1.5),
            faster(f"{what}, bf16", seconds["ours bf16"], f"{PEER}, fp32", seconds["fp32"]),
        ]
    return found
