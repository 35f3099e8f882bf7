"""The parts of the sampler graphs: prologue, one denoising step, epilogue of each (see
`modules.LoopModule`).

    text_to_image   tokens, noise                 -> pixels, codes
    image_to_text   pixels, noise                 -> tokens
    joint           noise                         -> pixels, codes, tokens
    edit            original, keep, tokens, noise -> pixels, codes

They compose methods of the models and hold no arithmetic of their own. A sampler whose guidance is
0 asks the model once per step, not twice: those parts are called Unguided.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from mmprod.config.schema import Dims, SamplerConfig
from mmprod.models.codec import Codec
from mmprod.models.fusion import Fusion
from mmprod.models.unmask import ImageUnmask, JointUnmask, TextUnmask

Tensors = tuple[Tensor, ...]


class TextToImagePrologue(nn.Module):
    """tokens, noise -> text features, features of no text, noise, wholly masked codes."""

    def __init__(self, fusion: Fusion, dims: Dims) -> None:
        super().__init__()
        self.fusion, self.dims = fusion, dims

    def forward(self, tokens: Tensor, noise: Tensor) -> Tensors:
        given = self.fusion.text.encode(tokens)
        free = self.fusion.text.encode(torch.full_like(tokens, self.dims.vocabulary))
        codes = torch.full_like(noise[:, 0], self.dims.codebook_size, dtype=torch.int32)
        return given, free, noise, codes


class TextToImageStep(nn.Module):
    """One denoising step of a picture, with and without its text in one batch."""

    def __init__(self, fusion: Fusion, dims: Dims, sampler: SamplerConfig) -> None:
        super().__init__()
        self.fusion = fusion
        self.sampling = ImageUnmask(dims, sampler)

    def forward(
        self, step: Tensor, given: Tensor, free: Tensor, noise: Tensor, codes: Tensor
    ) -> Tensors:
        image = self.fusion.image.encode(codes)
        fused, _ = self.fusion.fuse(torch.cat([image, image]), torch.cat([given, free]))
        logits = rearrange(self.fusion.image.decode(fused), "(two b) n k -> two b n k", two=2)
        with_text, without = logits.unbind(0)
        return (self.sampling(step, with_text, without, codes, noise),)


class TextToImageEpilogue(nn.Module):
    """codes -> pixels, codes."""

    def __init__(self, codec: Codec, grid: int) -> None:
        super().__init__()
        self.codec, self.grid = codec, (grid, grid)

    def forward(self, given: Tensor, free: Tensor, noise: Tensor, codes: Tensor) -> Tensors:
        return self.codec.decode(codes, self.grid), codes


class UnguidedTextToImagePrologue(nn.Module):
    """tokens, noise -> text features, noise, wholly masked codes."""

    def __init__(self, fusion: Fusion, dims: Dims) -> None:
        super().__init__()
        self.fusion, self.dims = fusion, dims

    def forward(self, tokens: Tensor, noise: Tensor) -> Tensors:
        codes = torch.full_like(noise[:, 0], self.dims.codebook_size, dtype=torch.int32)
        return self.fusion.text.encode(tokens), noise, codes


class UnguidedTextToImageStep(nn.Module):
    """One denoising step of a picture with its text."""

    def __init__(self, fusion: Fusion, dims: Dims, sampler: SamplerConfig) -> None:
        super().__init__()
        self.fusion = fusion
        self.sampling = ImageUnmask(dims, sampler)

    def forward(self, step: Tensor, given: Tensor, noise: Tensor, codes: Tensor) -> Tensors:
        fused, _ = self.fusion.fuse(self.fusion.image.encode(codes), given)
        return (self.sampling.unguided(step, self.fusion.image.decode(fused), codes, noise),)


class UnguidedTextToImageEpilogue(nn.Module):
    """codes -> pixels, codes."""

    def __init__(self, codec: Codec, grid: int) -> None:
        super().__init__()
        self.codec, self.grid = codec, (grid, grid)

    def forward(self, given: Tensor, noise: Tensor, codes: Tensor) -> Tensors:
        return self.codec.decode(codes, self.grid), codes


class ImageToTextPrologue(nn.Module):
    """pixels, noise -> image features, noise, wholly masked tokens."""

    def __init__(self, codec: Codec, fusion: Fusion, dims: Dims) -> None:
        super().__init__()
        self.codec, self.fusion, self.dims = codec, fusion, dims

    def forward(self, pixels: Tensor, noise: Tensor) -> Tensors:
        image = self.fusion.image.encode(self.codec.encode(pixels))
        tokens = torch.full_like(noise[:, 0], self.dims.vocabulary, dtype=torch.int32)
        return image, noise, tokens


class ImageToTextStep(nn.Module):
    """One denoising step of a caption."""

    def __init__(self, fusion: Fusion, dims: Dims, sampler: SamplerConfig) -> None:
        super().__init__()
        self.fusion = fusion
        self.sampling = TextUnmask(dims, sampler)

    def forward(self, step: Tensor, image: Tensor, noise: Tensor, tokens: Tensor) -> Tensors:
        _, fused = self.fusion.fuse(image, self.fusion.text.encode(tokens))
        return (self.sampling(step, self.fusion.text.decode(fused), tokens, noise),)


class ImageToTextEpilogue(nn.Module):
    """tokens -> tokens."""

    def forward(self, image: Tensor, noise: Tensor, tokens: Tensor) -> Tensors:
        return (tokens,)


def split_noise(noise: Tensor, positions: int) -> Tensors:
    """noise (B, T, N + L) -> that of the picture (B, T, N) and that of the text (B, T, L)."""
    return noise[:, :, :positions], noise[:, :, positions:]


class JointPrologue(nn.Module):
    """noise (B, T, N + L) -> features of no text, noise, wholly masked codes and tokens."""

    def __init__(self, fusion: Fusion, dims: Dims) -> None:
        super().__init__()
        self.fusion, self.dims = fusion, dims

    def forward(self, noise: Tensor) -> Tensors:
        image_noise, text_noise = split_noise(noise, self.dims.positions)
        codes = torch.full_like(image_noise[:, 0], self.dims.codebook_size, dtype=torch.int32)
        tokens = torch.full_like(text_noise[:, 0], self.dims.vocabulary, dtype=torch.int32)
        return self.fusion.text.encode(tokens), noise, codes, tokens


class JointStep(nn.Module):
    """One denoising step of picture and caption, the picture guided by what is known of the
    caption.
    """

    def __init__(self, fusion: Fusion, dims: Dims, sampler: SamplerConfig) -> None:
        super().__init__()
        self.fusion = fusion
        self.sampling = JointUnmask(dims, sampler)

    def forward(
        self, step: Tensor, free: Tensor, noise: Tensor, codes: Tensor, tokens: Tensor
    ) -> Tensors:
        image_noise, text_noise = split_noise(noise, codes.shape[1])
        image, given = self.fusion.image.encode(codes), self.fusion.text.encode(tokens)
        image, text = self.fusion.fuse(torch.cat([image, image]), torch.cat([given, free]))
        logits = rearrange(self.fusion.image.decode(image), "(two b) n k -> two b n k", two=2)
        with_text, without = logits.unbind(0)
        text_logits = self.fusion.text.decode(rearrange(text, "(two b) s d -> two b s d", two=2)[0])
        return (
            self.sampling.image(step, with_text, without, codes, image_noise),
            self.sampling.text(step, text_logits, tokens, text_noise),
        )


class UnguidedJointPrologue(nn.Module):
    """noise (B, T, N + L) -> noise, wholly masked codes and tokens."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, noise: Tensor) -> Tensors:
        image_noise, text_noise = split_noise(noise, self.dims.positions)
        codes = torch.full_like(image_noise[:, 0], self.dims.codebook_size, dtype=torch.int32)
        tokens = torch.full_like(text_noise[:, 0], self.dims.vocabulary, dtype=torch.int32)
        return noise, codes, tokens


class UnguidedJointStep(nn.Module):
    """One denoising step of picture and caption."""

    def __init__(self, fusion: Fusion, dims: Dims, sampler: SamplerConfig) -> None:
        super().__init__()
        self.fusion = fusion
        self.sampling = JointUnmask(dims, sampler)

    def forward(self, step: Tensor, noise: Tensor, codes: Tensor, tokens: Tensor) -> Tensors:
        image_noise, text_noise = split_noise(noise, codes.shape[1])
        image_logits, text_logits = self.fusion(codes, tokens)
        return (
            self.sampling.image.unguided(step, image_logits, codes, image_noise),
            self.sampling.text(step, text_logits, tokens, text_noise),
        )


class UnguidedJointEpilogue(nn.Module):
    """codes, tokens -> pixels, codes, tokens."""

    def __init__(self, codec: Codec, grid: int) -> None:
        super().__init__()
        self.codec, self.grid = codec, (grid, grid)

    def forward(self, noise: Tensor, codes: Tensor, tokens: Tensor) -> Tensors:
        return self.codec.decode(codes, self.grid), codes, tokens


class JointEpilogue(nn.Module):
    """codes, tokens -> pixels, codes, tokens."""

    def __init__(self, codec: Codec, grid: int) -> None:
        super().__init__()
        self.codec, self.grid = codec, (grid, grid)

    def forward(self, free: Tensor, noise: Tensor, codes: Tensor, tokens: Tensor) -> Tensors:
        return self.codec.decode(codes, self.grid), codes, tokens


class EditPrologue(nn.Module):
    """original, keep, tokens, noise -> as for a picture from a text, but the codes of the places to
    keep are known from the start. Step and epilogue are those of a picture from a text, too: a step
    draws masked places only.
    """

    def __init__(self, codec: Codec, blank: nn.Module) -> None:
        """blank: the prologue of a picture from a text."""
        super().__init__()
        self.codec, self.blank = codec, blank

    def forward(self, original: Tensor, keep: Tensor, tokens: Tensor, noise: Tensor) -> Tensors:
        *constants, blank = self.blank(tokens, noise)
        return *constants, torch.where(keep > 0, self.codec.encode(original), blank)
