"""The one table of graphs. Names of graphs, inputs and outputs are public API. Torch-free."""

from __future__ import annotations

from dataclasses import replace

from mmprod.config.schema import Dims, SamplerConfig
from mmprod.graphs.spec import Dim, GraphSpec, Tensor

BATCH = Dim("batch", 1, 4, 16)


def build_catalog(dims: Dims, sampler: SamplerConfig) -> dict[str, GraphSpec]:
    """All graphs for models of these sizes, by name, in the order they are exported and reported.

    B batch, H pixels per side, N codes, L text tokens, K codebook, V vocabulary, E embedding, T
    steps.
    """
    n, k, length, v = dims.positions, dims.codebook_size, dims.text_length, dims.vocabulary
    size = dims.image_size
    pixels = Tensor("pixels", "uint8", (BATCH, size, size, 3), "pixels", below=256)
    codes = Tensor("codes", "int32", (BATCH, n), "codes", below=k)
    tokens = Tensor("tokens", "int32", (BATCH, length), "tokens", below=v)
    masked_codes = Tensor("codes", "int32", (BATCH, n), "codes", below=k + 1)
    masked_tokens = Tensor("tokens", "int32", (BATCH, length), "tokens", below=v + 1)
    image_noise = Tensor("noise", "float32", (BATCH, sampler.image_steps, n), "noise")
    text_noise = Tensor("noise", "float32", (BATCH, sampler.text_steps, length), "noise")
    joint_noise = Tensor("noise", "float32", (BATCH, sampler.image_steps, n + length), "noise")
    original = replace(pixels, name="original")
    keep = Tensor("keep", "int32", (BATCH, n), "mask", below=2)
    specs = (
        GraphSpec("codec_encode", (pixels,), (codes,), "picture -> codes"),
        GraphSpec("codec_decode", (codes,), (pixels,), "codes -> picture"),
        GraphSpec(
            "embed_image",
            (codes,),
            (Tensor("embedding", "float32", (BATCH, dims.embedding), "embedding"),),
            "codes -> unit vector for search",
        ),
        GraphSpec(
            "embed_text",
            (tokens,),
            (Tensor("embedding", "float32", (BATCH, dims.embedding), "embedding"),),
            "tokens -> unit vector for search",
        ),
        GraphSpec(
            "fusion_step",
            (masked_codes, masked_tokens),
            (
                Tensor("image_logits", "float32", (BATCH, n, k), "logits"),
                Tensor("text_logits", "float32", (BATCH, length, v), "logits"),
            ),
            "partly masked codes and tokens -> logits of both",
        ),
        GraphSpec(
            "code_prior",
            (masked_codes,),
            (Tensor("logits", "float32", (BATCH, n, k), "logits"),),
            "partly masked codes -> their logits without a text, for compressed files",
        ),
        GraphSpec(
            "text_to_image",
            (tokens, image_noise),
            (pixels, codes),
            "tokens + noise -> picture, the whole sampler in one call",
            loop_steps=sampler.image_steps,
        ),
        GraphSpec(
            "image_to_text",
            (pixels, text_noise),
            (tokens,),
            "picture + noise -> caption tokens, the whole sampler in one call",
            loop_steps=sampler.text_steps,
        ),
        GraphSpec(
            "joint",
            (joint_noise,),
            (pixels, codes, tokens),
            "noise -> picture and caption, drawn together, the whole sampler in one call",
            loop_steps=sampler.image_steps,
        ),
        GraphSpec(
            "edit",
            (original, keep, masked_tokens, image_noise),
            (pixels, codes),
            "picture + places to keep + partly masked tokens + noise -> picture with the other "
            "places drawn anew",
            loop_steps=sampler.image_steps,
        ),
    )
    return {spec.name: spec for spec in specs}
