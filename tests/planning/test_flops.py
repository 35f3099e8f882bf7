"""FLOPs against figures by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmprod.config.load import load_config
from mmprod.config.schema import Config
from mmprod.models.flops import ATTENTION, training_flops
from mmprod.planning.sizes import sizes_of


def count(module: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        module(x)
    return counter.get_total_flops()


def test_linear_and_convolution() -> None:
    assert count(nn.Linear(8, 16), torch.ones(3, 8)) == 2 * 3 * 8 * 16
    convolution = nn.Conv2d(4, 6, 3, padding=1)
    assert count(convolution, torch.ones(2, 4, 5, 5)) == 2 * 2 * 25 * 4 * 6 * 9


def test_attention_of_one_kernel_forward_and_backward() -> None:
    q, k, v = (torch.ones(2, 3, 10, 8, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
    product = 2 * 2 * 3 * 10 * 10 * 8
    assert counter.get_total_flops() == 2 * product
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        mixed.sum().backward()
    assert counter.get_total_flops() == 4 * product


def fusion_by_hand(config: Config) -> int:
    """Forward FLOPs of one sample: every matrix times the positions it sees, and attention."""
    cfg, dims = config.fusion, config.dims(config.data.vocabulary)
    d, hidden = cfg.width, -(-8 * cfg.width // 3 // 32) * 32
    matrices = 2 * (4 * d * d + 3 * d * hidden)
    image, text = dims.positions + cfg.registers, dims.text_length + cfg.registers
    layers = image * matrices * (cfg.image_encoder + cfg.image_decoder)
    layers += text * matrices * (cfg.text_encoder + cfg.text_decoder)
    layers += (image + text) * matrices * (cfg.joint + cfg.shared)
    squares = image**2 * (cfg.image_encoder + cfg.image_decoder)
    squares += text**2 * (cfg.text_encoder + cfg.text_decoder)
    squares += (image + text) ** 2 * (cfg.joint + cfg.shared)
    heads = 2 * d * (dims.positions * dims.codebook_size + dims.text_length * dims.vocabulary)
    return layers + 2 * 2 * d * squares + heads


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_the_fusion_model_by_hand(name: str) -> None:
    config = load_config(name)
    found = training_flops(config, "fusion")
    # Left out by hand: the map of code features, the search projection, contrast.
    assert found.forward == pytest.approx(fusion_by_hand(config), rel=0.02)
    assert found.forward >= fusion_by_hand(config)
    assert found.backward == pytest.approx(2 * found.forward, rel=0.01)


def test_six_operations_per_parameter_and_token_is_the_right_size() -> None:
    """Kaplan et al. 2020: 6 N per token without embeddings; here with attention and heads."""
    config = load_config("base")
    sizes = sizes_of(config, "fusion")
    per_token = training_flops(config, "fusion").total / sizes.length
    assert 0.3 < per_token / (6 * sizes.trained) < 1.2


def test_checkpointing_adds_no_model_flops() -> None:
    plain = training_flops(load_config("tiny"), "codec")
    again = load_config("tiny", ["codec_train.activation_checkpointing=true"])
    assert training_flops(again, "codec") == plain


def test_a_discriminator_takes_its_share() -> None:
    without = training_flops(load_config("base", ["codec.gan_weight=0.0"]), "codec")
    assert training_flops(load_config("base"), "codec").total > without.total


def test_a_perceptual_network_is_counted_too() -> None:
    """It reads the picture twice, learns nothing, and its files need not exist."""
    plain = load_config("tiny", [])
    asked = load_config("tiny", ["codec.loss=natural", "codec.perceptual=vgg16.pth"])
    without, with_network = training_flops(plain, "codec"), training_flops(asked, "codec")
    assert with_network.forward > without.forward
    assert with_network.backward > without.backward
