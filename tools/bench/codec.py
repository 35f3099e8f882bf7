"""The whole training step of the codec beside diffusers' VQModel, the same layout of layers.

Four levels of 32, 64, 128, 128 channels, no attention, K 16384, D 8, 64 px. diffusers has 2
residual blocks a level in the encoder, 3 in the decoder, 2 + 2 in the middle; ours 3 a level and
1 + 1 in the middle, which is a little more of everything (see `note`). The same loss (L2 and
commitment) and optimizer (fused AdamW) for both; ours moves its codebook too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprod.config.schema import CodecConfig
from mmprod.models.attention import attend
from mmprod.models.codec import build_codec, to_signal
from tools.bench.measure import Row, Work, best_times, faster

SIDE, CODES, DIM = 64, 16_384, 8
WIDTHS = (32, 64, 128, 128)
OURS = CodecConfig(
    channels=32, multipliers=(1, 2, 4, 4), blocks=3, codebook_size=CODES, code_dim=DIM
)


def build_peer() -> nn.Module:
    """diffusers' VQModel."""
    from diffusers import VQModel

    levels = len(WIDTHS)
    model: nn.Module = VQModel(
        block_out_channels=WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        latent_channels=DIM,
        num_vq_embeddings=CODES,
        vq_embed_dim=DIM,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )
    return model.train()


def our_step(pixels: Tensor, *, bf16: bool) -> Work:
    """One optimizer step of ours."""
    codec = build_codec(OURS).train()

    def loss() -> Tensor:
        x = to_signal(pixels)
        quantized = codec.quantizer(codec.encoder(x))
        restored = codec.decoder(quantized.latents).float()
        total: Tensor = F.mse_loss(restored, x) + quantized.encoder_loss
        return total

    return _step(codec, loss, codec.quantizer.update, bf16=bf16)


def peer_step(pixels: Tensor, *, bf16: bool) -> Work:
    """One optimizer step of the peer, on pictures (B, 3, H, W) as its users have them."""
    model = build_peer()
    x = to_signal(pixels).contiguous()

    def loss() -> Tensor:
        out = model(x)
        total: Tensor = F.mse_loss(out.sample.float(), x) + out.commit_loss.mean()
        return total

    return _step(model, loss, lambda: None, bf16=bf16)


def _step(model: nn.Module, loss: Any, after: Work, *, bf16: bool) -> Work:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            total = loss()
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after()

    return step


def multiply_adds(model: nn.Module, run: Work) -> int:
    """Multiply-adds of all convolutions and linear layers in `run`."""
    counted = [0]

    def count(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        weight = layer.weight
        if isinstance(weight, Tensor):
            counted[0] += output.numel() * weight[0].numel()

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return counted[0]


def sizes() -> tuple[tuple[int, int], tuple[int, int]]:
    """(parameters, multiply-adds a picture) of ours and of the peer; the peer's codebook, which is
    a buffer in ours, is left out.
    """
    codec, peer = build_codec(OURS).eval(), build_peer().eval()
    pixels = torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8)

    def ours() -> None:
        codec.decode(codec.encode(pixels), (SIDE // OURS.factor,) * 2)

    def parameters(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    theirs = multiply_adds(peer, lambda: peer(to_signal(pixels)))
    return (
        (parameters(codec), multiply_adds(codec, ours)),
        (parameters(peer) - CODES * DIM, theirs),
    )


def note() -> str:
    """The sizes of both in a line."""
    (own, own_work), (peer, peer_work) = sizes()
    return (
        f"codec step: ours {own / 1e6:.2f} M parameters, {own_work / 1e6:.0f} M multiply-adds a "
        f"picture; diffusers {peer / 1e6:.2f} M, {peer_work / 1e6:.0f} M"
    )


def rows(rounds: int, batch: int) -> list[Row]:
    """bf16 and fp32 of ours against the peer's fp32, which is how it trains on a processor; its
    bf16 for comparison.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    works = {
        "ours bf16": our_step(pixels, bf16=True),
        "ours fp32": our_step(pixels, bf16=False),
        "fp32": peer_step(pixels, bf16=False),
        "bf16": peer_step(pixels, bf16=True),
    }
    seconds = best_times(works, rounds)
    peer = "diffusers VQModel"
    return [
        faster("codec step, bf16", seconds["ours bf16"], f"{peer}, fp32", seconds["fp32"], 3.0),
        faster("codec step, fp32", seconds["ours fp32"], f"{peer}, fp32", seconds["fp32"], 1.0),
        faster("codec step, bf16", seconds["ours bf16"], f"{peer}, bf16", seconds["bf16"]),
    ]


def attention_rows(rounds: int) -> list[Row]:
    """Attention forward and backward, bf16, batch 64, 4 heads of 48, 98 tokens."""
    tensors = [torch.randn(64, 4, 98, 48, dtype=torch.bfloat16) for _ in range(3)]

    def work(function: Any) -> Work:
        def step() -> None:
            q, k, v = (t.clone().requires_grad_() for t in tensors)
            function(q, k, v).sum().backward()

        return step

    works = {"ours": work(attend), "fused": work(F.scaled_dot_product_attention)}
    seconds = best_times(works, rounds)
    return [faster("attention, bf16", seconds["ours"], "fused CPU kernel", seconds["fused"])]
