"""A whole job on drawn avatars, small enough for a test: 32 px, 64 pictures, 4 steps a stage."""

from __future__ import annotations

from mmprod.config.schema import Config

TRAIN = {
    "steps": 4,
    "batch": 8,
    "warmup": 1,
    "precision": "fp32",
    "log_every": 1,
    "eval_every": 2,
    "save_every": 2,
}


def mini_config(**sections: dict[str, object]) -> Config:
    """The job; `sections` change single values, e.g. `data={"flip": True}`."""
    values: dict[str, dict[str, object]] = {
        "log": {},
        "data": {"count": 64, "image_size": 32, "text_length": 24, "vocabulary": 300},
        "codec": {"patch": 2, "channels": 8, "multipliers": (1, 2), "codebook_size": 32},
        "codec_train": dict(TRAIN),
        "fusion": {
            "width": 16,
            "heads": 2,
            "image_encoder": 1,
            "text_encoder": 1,
            "joint": 1,
            "shared": 1,
            "embedding": 8,
        },
        "fusion_train": dict(TRAIN),
        "sampler": {"image_steps": 2, "text_steps": 2},
    }
    for name, changes in sections.items():
        values[name] |= changes
    return Config(name="mini", **values)  # type: ignore[arg-type]
