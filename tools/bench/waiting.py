"""Which share of a step training waits for data, from a folder of pictures and from drawn ones.

Both are prepared once as Arrow files, and a real training (`mmprod train`, preset tiny) reads them;
the figure is `data_wait` of its own log lines, the first left out: it warms up. The fusion stage
reads codes from memory and captions from the file.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from mmprod.config.load import load_config
from mmprod.config.schema import Config
from mmprod.data.avatars import prepare_avatars
from mmprod.data.store import open_split
from mmprod.training.run import train
from tools.bench.measure import Row

PICTURES = 320
MOST = 0.02


def job(source: str, path: Path, batch: int, lines: int) -> Config:
    """Preset tiny on the data in `path`, `lines` log lines long."""
    values = load_config("tiny").model_dump()
    values["data"] |= {"source": source, "path": str(path), "count": PICTURES}
    steps = 6 * lines
    for stage in ("codec", "fusion"):
        values[f"{stage}_train"] |= {
            "batch": batch, "steps": steps, "log_every": 6, "eval_every": steps,
            "save_every": steps, "warmup": 1,
        }  # fmt: skip
    return Config.model_validate(values)


def write_folder(drawn: Path, out: Path) -> None:
    """The drawn pictures as PNG files in two classes."""
    split = open_split(drawn, "train")
    for index in range(len(split)):
        folder = out / f"class {index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (pixels,) = split.images(np.array([index]))
        Image.fromarray(pixels).save(folder / f"{index}.png")


def waits(run: Path, stage: str) -> list[float]:
    """data_wait of the log lines but the first."""
    lines = [json.loads(x) for x in (run / stage / "metrics.jsonl").read_text().splitlines()]
    return [line["data_wait"] for line in lines if line["kind"] == "log"][1:]


def rows(rounds: int, batch: int) -> list[Row]:
    """Both sources, both stages: milliseconds of waiting in a second of steps."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        size = load_config("tiny").data.image_size
        drawn, pictures = root / "drawn", root / "pictures"
        prepare_avatars(drawn, count=PICTURES, size=size, seed=0, variants=2)
        write_folder(drawn, pictures)
        for source, path in (("avatars", drawn), ("folder", pictures)):
            run = root / f"run-{source}"
            train(job(source, path, batch, rounds + 1), run)
            for stage in ("codec", "fusion"):
                share = statistics.median(waits(run, stage))
                found.append(
                    Row(
                        f"waiting for data, {stage}, {source}",
                        1e3 * share,
                        "a whole second",
                        1e3,
                        "ms",
                        f"<= {MOST:.0%} of it",
                        share <= MOST,
                    )
                )
    return found
