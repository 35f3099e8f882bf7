"""Option creep: every field is set by a shipped configuration, or exempt with a reason."""

from __future__ import annotations

import tomllib

from mmprod.config.load import configs_dir
from mmprod.config.schema import Config

EXEMPT = {
    "data.path": "a user's folder",
    "data.seed": "reproducibility",
    "codec.ema_decay": "the value of the paper; tests lower it",
    "codec.commitment": "the value of the paper",
    "codec.perceptual": "a user's weights",
    "codec.perceptual_heads": "a user's weights",
    "codec.gan_start": "the value of most published recipes, as a share",
    "fusion.pad_weight": "a user's captions may be all of one length",
    "*.lr_final": "0 for a full cosine",
    "*.clip": "must agree with a ds.json",
    "*.precision": "fp32 to compare with other machines",
    "*.seed": "reproducibility",
    "*.keep": "disk space",
    "*.patience": "early stopping is a choice about a budget",
    "*.init_from": "a user's weights",
    "*.freeze": "goes with a user's weights",
    "distill.teacher": "a user's run",
    "log.to": "a user's account with a tracker; no preset opens a network",
    "log.peak_tflops": "a user's device",
    "sampler.image_temperature": "set at export by taste",
    "sampler.text_temperature": "set at export by taste",
    "sampler.min_probability": "set at export by taste",
}


def test_every_field_is_used_or_exempt_and_no_exemption_is_stale() -> None:
    used: set[str] = set()
    for path in configs_dir().rglob("*.toml"):
        content = tomllib.loads(path.read_text())
        used |= {
            f"{section}.{key}"
            for section, values in content.items()
            if isinstance(values, dict)
            for key in values
        }
    fields = {
        f"{section}.{key}"
        for section, info in Config.model_fields.items()
        if section != "name"
        for key in type(info.default).model_fields
    }

    def stage_wide(field: str) -> str:
        section, key = field.split(".")
        return f"*.{key}" if section.endswith("_train") else field

    common = {stage_wide(field) for field in used}
    unused = {field for field in fields if stage_wide(field) not in common}
    assert {field for field in unused if stage_wide(field) not in EXEMPT} == set()
    assert {name for name in EXEMPT if name in common} == set()
    assert set(EXEMPT) <= {stage_wide(field) for field in fields}
