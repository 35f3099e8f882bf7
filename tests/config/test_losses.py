"""Loss keys of the codec section that do not go together are refused by name."""

from __future__ import annotations

import pytest

from mmprod.config.load import load_config
from mmprod.config.schema import CodecConfig
from mmprod.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["codec.gan_weight=0.1"], "gan_weight has no place in loss = archive"),
        (["codec.perceptual=vgg16.pth"], "perceptual has no place in loss = archive"),
        (["codec.loss=natural", "codec.perceptual_heads=vgg.pth"], "needs perceptual"),
        (["codec.loss=natural", "codec.gan_start=1.0"], "codec.gan_start"),
    ],
)
def test_nonsense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("tiny", overrides)


def test_the_adversarial_term_is_off_unless_a_preset_asks_for_it() -> None:
    assert CodecConfig().gan_weight == 0
    assert load_config("base").codec.gan_weight == load_config("large").codec.gan_weight == 0.1
    assert load_config("tiny").codec.gan_weight == load_config("small").codec.gan_weight == 0
