"""Text to picture with the text encoded once, beside the same loop that encodes it in every step.

The naive loop is what a sampler over the whole model does: each step hands codes and tokens, with
and without the text in one batch, to both towers. Ours has the features of the text from the start
and encodes the codes once for both: two differences, timed as one. The codes are compared before
anything is timed. The aim is near to what is measured, so medians of many rounds in turn are taken;
beside other programs a row may still fall on either side of it.
"""

from __future__ import annotations

import statistics

import torch
from einops import rearrange
from torch import Tensor

from mmprod.config.load import load_config
from mmprod.config.schema import Config
from mmprod.graphs.modules import build_module
from mmprod.models.codec import build_codec
from mmprod.models.fusion import Fusion, build_fusion
from mmprod.models.unmask import ImageUnmask
from tools.bench.measure import Row, Work, best_times, faster

PRESETS = ("tiny", "small")
BATCHES = (1, 4)
LEAST_ROUNDS = 21


def naive(fusion: Fusion, config: Config, tokens: Tensor, noise: Tensor) -> Tensor:
    """tokens (B, L), noise (B, T, N) -> codes (B, N), all of the model's inputs encoded anew in
    every step.
    """
    dims = config.dims(config.data.vocabulary)
    unmask = ImageUnmask(dims, config.sampler)
    codes = torch.full_like(noise[:, 0], dims.codebook_size, dtype=torch.int32)
    both = torch.cat([tokens, torch.full_like(tokens, dims.vocabulary)])
    for step in range(config.sampler.image_steps):
        image = fusion.image.encode(torch.cat([codes, codes]))
        fused, _ = fusion.fuse(image, fusion.text.encode(both))
        logits = rearrange(fusion.image.decode(fused), "(two b) n k -> two b n k", two=2)
        codes = unmask(torch.tensor([step]), *logits.unbind(0), codes, noise)
    return codes


def works(preset: str, batch: int) -> dict[str, Work]:
    """Both loops of a preset with fresh weights, as functions that give codes."""
    config = load_config(preset)
    dims = config.dims(config.data.vocabulary)
    torch.manual_seed(0)
    fusion = build_fusion(config.fusion, dims).eval()
    graph = build_module(
        "text_to_image",
        codec=build_codec(config.codec).eval(),
        fusion=fusion,
        dims=dims,
        sampler=config.sampler,
    )
    tokens = torch.randint(dims.vocabulary, (batch, dims.text_length), dtype=torch.int32)
    noise = torch.rand(batch, config.sampler.image_steps, dims.positions)
    graph.epilogue = torch.nn.Module()  # the decoder is the same in both: left out
    graph.epilogue.forward = lambda given, free, noise, codes: codes

    def ours() -> object:
        with torch.inference_mode():
            return graph(tokens, noise)

    def theirs() -> object:
        with torch.inference_mode():
            return naive(fusion, config, tokens, noise)

    return {"once": ours, "each step": theirs}


def rows(rounds: int) -> list[Row]:
    """Each preset and batch. Raises RuntimeError when the two draw different codes."""
    found = []
    for preset in PRESETS:
        for batch in BATCHES:
            loops = works(preset, batch)
            once, each = (loop() for loop in loops.values())
            if not (isinstance(once, Tensor) and isinstance(each, Tensor) and once.equal(each)):
                raise RuntimeError(f"{preset}, batch {batch}: the two loops drew different codes")
            seconds = best_times(loops, max(rounds, LEAST_ROUNDS), statistics.median)
            what = f"text to codes, {preset}, batch {batch}"
            found.append(
                faster(
                    what, seconds["once"], "text each step, codes twice", seconds["each step"], 1.12
                )
            )
    return found
