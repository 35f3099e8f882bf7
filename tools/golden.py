"""The golden loss curves: a short fp32 run of both stages whose losses are kept in the tree.

`python tools/golden.py` writes tests/golden/losses.json anew; do that only in a commit that says
why the losses changed. tests/test_golden.py makes the same run and compares.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from mmprod.config.schema import CodecConfig, Config, DataConfig, FusionConfig, TrainConfig
from mmprod.manifest import write_json
from mmprod.training.events import Event
from mmprod.training.run import train

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "losses.json"
STEPS = 12
SECTION = TrainConfig(
    steps=STEPS,
    batch=16,
    lr=2e-3,
    warmup=4,
    precision="fp32",
    ema=0.9,
    log_every=1,
    eval_every=STEPS,
    save_every=STEPS,
)
CONFIG = Config(
    name="golden",
    data=DataConfig(image_size=32, count=80, text_length=24, vocabulary=320, caption_variants=1),
    codec=CodecConfig(patch=4, channels=16, multipliers=(1, 2), codebook_size=64, code_dim=4),
    codec_train=SECTION,
    fusion=FusionConfig(width=32, heads=2, image_encoder=1, text_encoder=1, joint=1, shared=1),
    fusion_train=SECTION.model_copy(update={"optimizer": "muon"}),
)


def losses(folder: Path) -> dict[str, list[float]]:
    """Train into `folder` and return the loss of every step, by stage."""
    found: dict[str, list[float]] = {"codec": [], "fusion": []}

    def on_event(event: Event) -> None:
        if event.kind == "log":
            found[event.stage].append(event.metrics["loss"])

    train(CONFIG, folder, on_event=on_event)
    return found


def main() -> int:
    """Write the golden file."""
    with tempfile.TemporaryDirectory() as folder:
        found = losses(Path(folder) / "run")
    write_json(GOLDEN, found)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
