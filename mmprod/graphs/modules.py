"""Graphs as modules: they compose methods of the models and hold no arithmetic of their own.

Training, export and serving therefore run the same code. A sampler graph is a `LoopModule`: a
prologue that encodes the condition once, a body that is one denoising step, an epilogue that gives
the result. PyTorch runs it as a Python loop; the exporter writes it as one ONNX graph with one
Loop.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmprod.config.schema import Dims, SamplerConfig
from mmprod.graphs.samplers import (
    EditPrologue,
    ImageToTextEpilogue,
    ImageToTextPrologue,
    ImageToTextStep,
    JointEpilogue,
    JointPrologue,
    JointStep,
    TextToImageEpilogue,
    TextToImagePrologue,
    TextToImageStep,
    UnguidedJointEpilogue,
    UnguidedJointPrologue,
    UnguidedJointStep,
    UnguidedTextToImageEpilogue,
    UnguidedTextToImagePrologue,
    UnguidedTextToImageStep,
)
from mmprod.models.codec import Codec
from mmprod.models.fusion import Fusion

Tensors = tuple[Tensor, ...]


class CodecEncode(nn.Module):
    """pixels -> codes."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, pixels: Tensor) -> Tensors:
        return (self.codec.encode(pixels),)

    def rivals(self, pixels: Tensor) -> dict[str, Tensors]:
        """What was nearly chosen, by output: ids and changes (see `runner.Rivals`)."""
        found = self.codec.rivals(pixels)
        return {} if found is None else {"codes": found}


class CodecDecode(nn.Module):
    """codes -> pixels."""

    def __init__(self, codec: Codec, grid: int) -> None:
        super().__init__()
        self.codec, self.grid = codec, (grid, grid)

    def forward(self, codes: Tensor) -> Tensors:
        return (self.codec.decode(codes, self.grid),)


class EmbedImage(nn.Module):
    """codes -> search embedding."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, codes: Tensor) -> Tensors:
        return (self.fusion.embed_image(codes),)


class EmbedText(nn.Module):
    """tokens -> search embedding."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, tokens: Tensor) -> Tensors:
        return (self.fusion.embed_text(tokens),)


class CodePrior(nn.Module):
    """codes -> logits of the codes, the text wholly masked."""

    def __init__(self, fusion: Fusion, dims: Dims) -> None:
        super().__init__()
        self.fusion, self.dims = fusion, dims

    def forward(self, codes: Tensor) -> Tensors:
        shape = (1, self.dims.text_length)
        tokens = torch.full(shape, self.dims.vocabulary, dtype=torch.int32, device=codes.device)
        text = self.fusion.text.encode(tokens).expand(codes.shape[0], -1, -1)
        fused, _ = self.fusion.fuse(self.fusion.image.encode(codes), text)
        return (self.fusion.image.decode(fused),)


class LoopModule(nn.Module):
    """prologue(*inputs) -> (*constants, *state); body(step, *constants, *state) -> state;
    epilogue(*constants, *state) -> outputs.

    `step` is an int64 tensor of shape (1,). Every constant and state tensor has the batch as axis
    0.
    """

    def __init__(
        self,
        parts: tuple[nn.Module, nn.Module, nn.Module],
        steps: int,
        constants: tuple[str, ...],
        state: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.prologue, self.body, self.epilogue = parts
        self.steps, self.constants, self.state = steps, constants, state

    def forward(self, *inputs: Tensor) -> Tensors:
        carried = self.prologue(*inputs)
        constants, state = carried[: len(self.constants)], carried[len(self.constants) :]
        for step in range(self.steps):
            state = self.body(torch.tensor([step], device=inputs[0].device), *constants, *state)
        outputs: Tensors = self.epilogue(*constants, *state)
        return outputs


def build_module(
    name: str, *, codec: Codec, fusion: Fusion, dims: Dims, sampler: SamplerConfig
) -> nn.Module:
    """The module of one graph of the catalog: forward(*inputs in the spec's order) -> outputs in
    the spec's order. Made from equal arguments, parts of the same class are the same function.
    """
    build_picture, build_joint = (
        (_picture, _joint) if sampler.guidance else (_unguided_picture, _unguided_joint)
    )

    def image_to_text() -> nn.Module:
        parts = (
            ImageToTextPrologue(codec, fusion, dims),
            ImageToTextStep(fusion, dims, sampler),
            ImageToTextEpilogue(),
        )
        return LoopModule(parts, sampler.text_steps, ("image", "noise"), ("tokens",))

    builders: dict[str, Callable[[], nn.Module]] = {
        "codec_encode": lambda: CodecEncode(codec),
        "codec_decode": lambda: CodecDecode(codec, dims.grid),
        "embed_image": lambda: EmbedImage(fusion),
        "embed_text": lambda: EmbedText(fusion),
        "fusion_step": lambda: fusion,
        "code_prior": lambda: CodePrior(fusion, dims),
        "text_to_image": lambda: build_picture(codec, fusion, dims, sampler),
        "image_to_text": image_to_text,
        "joint": lambda: build_joint(codec, fusion, dims, sampler),
        "edit": lambda: _of_places(codec, build_picture(codec, fusion, dims, sampler)),
    }
    return builders[name]().eval()


def _picture(codec: Codec, fusion: Fusion, dims: Dims, sampler: SamplerConfig) -> LoopModule:
    parts = (
        TextToImagePrologue(fusion, dims),
        TextToImageStep(fusion, dims, sampler),
        TextToImageEpilogue(codec, dims.grid),
    )
    return LoopModule(parts, sampler.image_steps, ("given", "free", "noise"), ("codes",))


def _unguided_picture(
    codec: Codec, fusion: Fusion, dims: Dims, sampler: SamplerConfig
) -> LoopModule:
    parts = (
        UnguidedTextToImagePrologue(fusion, dims),
        UnguidedTextToImageStep(fusion, dims, sampler),
        UnguidedTextToImageEpilogue(codec, dims.grid),
    )
    return LoopModule(parts, sampler.image_steps, ("given", "noise"), ("codes",))


def _of_places(codec: Codec, picture: LoopModule) -> LoopModule:
    """The sampler of a whole picture, begun with the codes of the places that are kept."""
    parts = (EditPrologue(codec, picture.prologue), picture.body, picture.epilogue)
    return LoopModule(parts, picture.steps, picture.constants, picture.state)


def _joint(codec: Codec, fusion: Fusion, dims: Dims, sampler: SamplerConfig) -> LoopModule:
    parts = (
        JointPrologue(fusion, dims),
        JointStep(fusion, dims, sampler),
        JointEpilogue(codec, dims.grid),
    )
    return LoopModule(parts, sampler.image_steps, ("free", "noise"), ("codes", "tokens"))


def _unguided_joint(codec: Codec, fusion: Fusion, dims: Dims, sampler: SamplerConfig) -> LoopModule:
    parts = (
        UnguidedJointPrologue(dims),
        UnguidedJointStep(fusion, dims, sampler),
        UnguidedJointEpilogue(codec, dims.grid),
    )
    return LoopModule(parts, sampler.image_steps, ("noise",), ("codes", "tokens"))
