"""One training pass of either stage on tensors without content, to count what it takes.

Under a FakeTensorMode the tensors know every operator's real path on a CPU, autocast and memory,
and compute nothing. (On `meta` there is no autocast, and fake tensors of a GPU need a PyTorch
built for one.) Nothing here is trained; the networks beside the codec take part as in training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mmprod.config.parts import part_of
from mmprod.config.schema import Config
from mmprod.models import attention
from mmprod.models.codec import RESTORED, Codec, build_codec, to_signal
from mmprod.models.discriminator import Discriminator, generator_loss, hinge_loss
from mmprod.models.fusion import build_fusion
from mmprod.models.fusion_loss import FusionObjective
from mmprod.models.perceptual import Perceptual
from mmprod.models.recompute import recompute_activations

WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_stage(config: Config, stage: str, vocabulary: int = 0) -> nn.Module:
    """The model that a stage trains, on the meta device, its frozen parts without gradients.

    vocabulary: ids of the tokenizer; 0: the upper limit in the configuration.
    """
    with torch.device("meta"):
        if stage == "codec":
            model: nn.Module = build_codec(config.codec)
            core = model
        else:
            dims = config.dims(vocabulary or config.data.vocabulary)
            core = build_fusion(config.fusion, dims)
            model = FusionObjective(core, config.fusion, dims)
    frozen = (config.codec_train if stage == "codec" else config.fusion_train).freeze
    for name, parameter in core.named_parameters():
        if part_of(stage, name) in frozen:
            parameter.requires_grad_(False)
    return model


def build_beside(config: Config, stage: str) -> dict[str, nn.Module]:
    """Discriminator and perceptual network, where configured, on the meta device."""
    found: dict[str, nn.Module] = {}
    if stage != "codec":
        return found
    with torch.device("meta"):
        if config.codec.gan_weight:
            found["discriminator"] = Discriminator()
        if config.codec.perceptual:
            found["perceptual"] = Perceptual()
    return found


def example_batch(config: Config, stage: str, batch: int) -> tuple[Tensor, ...]:
    """Inputs of one micro-batch, in the form the stage's task gives them."""
    side, dims = config.data.image_size, config.dims(config.data.vocabulary)
    if stage == "codec":
        return (torch.empty(batch, side, side, 3, dtype=torch.uint8),)
    codes = torch.empty(batch, dims.positions, dtype=torch.int32)
    tokens = torch.empty(batch, dims.text_length, dtype=torch.int32)
    noise = torch.empty(batch, 3 + dims.positions + dims.text_length)
    return codes, tokens, noise


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Attention as it runs on a GPU, by one kernel that keeps no scores, though the tensors are a
    CPU's (see attention.attend). Enter `as_elsewhere` too.
    """
    with mock.patch.object(attention, "attend", F.scaled_dot_product_attention):
        yield


@dataclass(frozen=True)
class Example:
    """A stage's model, what stands beside it, and one micro-batch, all of one kind of tensors."""

    model: nn.Module
    beside: dict[str, nn.Module]
    batch: tuple[Tensor, ...]

    @classmethod
    def of(cls, config: Config, stage: str, batch: int, *, weights: str = "fp32") -> Example:
        """On the CPU; enter a FakeTensorMode around it for tensors without content.

        weights: type of the model's parameters, as the backend keeps them; buffers stay fp32.
        """
        model, beside = build_stage(config, stage), build_beside(config, stage)
        _materialize(model, WEIGHTS[weights])
        for network in beside.values():
            _materialize(network, torch.float32)
        if (
            config.codec_train if stage == "codec" else config.fusion_train
        ).activation_checkpointing:
            recompute_activations(model)
        return cls(model.train(), beside, example_batch(config, stage, batch))

    def tensors(self) -> Iterator[Tensor]:
        """Everything that exists before the pass."""
        for network in (self.model, *self.beside.values()):
            yield from network.parameters()
            yield from network.buffers()
        yield from self.batch

    def forward(self) -> Tensor:
        """The loss that the backend receives. The discriminator makes its own backward pass on the
        way, as in training.
        """
        outputs: dict[str, Tensor] = self.model(*self.batch)
        loss = outputs["loss"]
        if not isinstance(self.model, Codec):
            return loss
        restored, x = outputs[RESTORED], to_signal(self.batch[0])
        perceptual, judge = self.beside.get("perceptual"), self.beside.get("discriminator")
        if isinstance(perceptual, Perceptual):
            loss = loss + perceptual.distance(restored, x).mean()
        if judge is not None:
            frozen = {name: p.detach() for name, p in judge.named_parameters()}
            loss = loss + generator_loss(functional_call(judge, frozen, (restored,)))
            real, fake = judge(torch.cat([x, restored.detach()])).chunk(2)
            torch.autograd.backward(hinge_loss(real, fake))
        return loss


def _materialize(network: nn.Module, weights: torch.dtype) -> None:
    """Give every tensor of a network on the meta device one on the CPU, parameters of type
    `weights`. (`to_empty` swaps tensors, which fake ones refuse.)
    """
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            real = torch.empty(parameter.shape, dtype=weights, device="cpu")
            setattr(module, name, nn.Parameter(real, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
