"""A tiny run with the models that training builds, and its export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmprod.bundle import Bundle, open_bundle
from mmprod.checkpoint.models import Models
from mmprod.checkpoint.run import Run
from mmprod.config.load import to_toml
from mmprod.config.schema import (
    CodecConfig,
    Config,
    DataConfig,
    FusionConfig,
    SamplerConfig,
)
from mmprod.export.pipeline import ExportEvent, export_run
from mmprod.export.precision import PRECISIONS
from mmprod.graphs.runner import Array
from mmprod.models.codec import build_codec
from mmprod.models.fusion import build_fusion

CONFIG = Config(
    name="exported",
    data=DataConfig(image_size=16, text_length=6, vocabulary=48),
    codec=CodecConfig(patch=2, channels=8, multipliers=(1, 2), codebook_size=32, code_dim=4),
    fusion=FusionConfig(
        width=32,
        heads=2,
        image_encoder=1,
        text_encoder=1,
        joint=1,
        shared=1,
        image_decoder=1,
        text_decoder=1,
        registers=1,
        embedding=16,
    ),
    sampler=SamplerConfig(image_steps=3, text_steps=3),
)
DIMS = CONFIG.dims(48)


@dataclass(frozen=True)
class Exported:
    """A bundle with all that it was made from."""

    bundle: Bundle
    run: Run
    models: Models
    samples: dict[str, Array]
    events: list[ExportEvent]


def export_tiny(root: Path) -> Exported:
    """Export a run with fixed weights, in every precision, below `root`."""
    (root / "tokenizer.json").write_text('{"a": 1}')
    (root / "config.toml").write_text(to_toml(CONFIG))
    run = Run(
        root=root,
        config=CONFIG,
        dims=DIMS,
        stages={},
        data="data",
        data_fingerprint="f" * 64,
        versions={},
        files=(),
    )
    torch.manual_seed(3)
    models = Models(build_codec(CONFIG.codec).eval(), build_fusion(CONFIG.fusion, DIMS).eval())
    for name, parameter in models.fusion.named_parameters():
        if name.endswith("embed.weight"):
            parameter.data.mul_(4)  # logits of a fresh model are all alike, which tests nothing
    rng = np.random.default_rng(0)
    samples: dict[str, Array] = {
        "pixels": rng.integers(0, 256, (5, 16, 16, 3)).astype(np.uint8),
        "tokens": rng.integers(0, DIMS.vocabulary, (5, 6)).astype(np.int32),
    }
    events: list[ExportEvent] = []
    out = root / "bundle"
    export_run(run, models, out, precisions=PRECISIONS, samples=samples, on_event=events.append)
    return Exported(open_bundle(out), run, models, samples, events)
