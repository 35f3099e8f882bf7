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
        (["codec.loss=natural", "codec.gan_start=0.5"], "gan_start has no effect without gan_wei"),
        (
            ["codec.loss=natural", "codec.gan_weight=0.1", "codec_train.patience=3"],
            "codec_train.patience has no effect",
        ),
        (["codec.entropy=0.2"], "entropy has no effect on spherical; it belongs to lfq"),
        (["codec.quantizer=simvq", "codec.restart=false"], "restart has no effect on simvq"),
        (["codec.quantizer=simvq", "codec.ema_decay=0.9"], "ema_decay has no effect on simvq"),
        (["codec.codebook_size=1048577"], "1048577 ids are more than 1048576"),
    ],
)
def test_nonsense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("tiny", overrides)


def test_the_adversarial_term_is_off_unless_a_preset_asks_for_it() -> None:
    assert CodecConfig().gan_weight == 0
    assert load_config("base").codec.gan_weight == load_config("large").codec.gan_weight == 0.1
    assert load_config("tiny").codec.gan_weight == load_config("small").codec.gan_weight == 0


def test_a_key_of_the_codec_that_fsq_does_not_read_is_refused() -> None:
    fsq = {"quantizer": "fsq", "levels": (8, 5), "codebook_size": 40, "code_dim": 2}
    CodecConfig.model_validate(fsq)
    with pytest.raises(ValueError, match="commitment has no effect on fsq"):
        CodecConfig.model_validate(fsq | {"commitment": 1.0})
