"""False alarms: export models with fresh random weights, one seed after the other, and count how
often the parity gate refuses a graph that nobody damaged.

    python tools/clean_exports.py --out alarms.jsonl [--seeds 50] [--first 0] [--config FILE]

Each export is checked as `mmprod export` checks it: stored cases, all ids, and noise, live against
PyTorch, in fp32 and fp16. A line per seed; run it again to go on after an interruption. Nearly all
of the time is tracing: two processes with other --first and --out use two cores. Without --config
the models are small: 16 pixels, width 32. Exits with 1 if there was an alarm.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmprod.checkpoint.models import Models
from mmprod.checkpoint.run import Run
from mmprod.config.load import load_config, to_toml
from mmprod.config.schema import Config
from mmprod.export.pipeline import export_run
from mmprod.graphs.modules import build_module
from mmprod.graphs.spec import GraphSpec
from mmprod.log import configure_logging
from mmprod.models.codec import build_codec
from mmprod.models.fusion import build_fusion
from mmprod.parity.report import ParityReport
from mmprod.parity.run import Comparison
from mmprod.runners.torch import TorchRunner

PRECISIONS = ("fp32", "fp16")
BATCHES, NOISE_SEEDS = (1, 3, 8), 2
"""as `mmprod export` compares"""
SAMPLES = 20
LIVELY = 4.0
"""Factor on the id embeddings: logits of a fresh model are all alike, which tests nothing."""
SMALL: dict[str, Any] = {
    "name": "clean",
    "data": {"image_size": 16, "text_length": 6, "vocabulary": 48},
    "codec": {
        "patch": 2,
        "channels": 8,
        "multipliers": (1, 2),
        "codebook_size": 32,
        "code_dim": 4,
    },
    "fusion": {
        "width": 32,
        "heads": 2,
        "image_encoder": 1,
        "text_encoder": 1,
        "joint": 1,
        "shared": 1,
        "registers": 1,
        "embedding": 16,
    },
    "sampler": {"image_steps": 3, "text_steps": 3},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--config", help="another configuration: its sizes are used")
    given = parser.parse_args()
    configure_logging(-1)
    config = load_config(given.config) if given.config else Config.model_validate(SMALL)
    lines = given.out.read_text().splitlines() if given.out.is_file() else []
    done = [json.loads(line) for line in lines]
    with given.out.open("a", encoding="utf-8") as stream:
        for seed in range(given.first + len(done), given.first + given.seeds):
            done.append(one(config, seed))
            print(json.dumps(done[-1]), file=stream, flush=True)
            print(f"seed {seed}: {done[-1]['rows']} verdicts, {len(done[-1]['alarms'])} alarms")
    alarms = [f"seed {d['seed']}: {text}" for d in done for text in d["alarms"]]
    rows = sum(d["rows"] for d in done)
    print(f"{len(done)} exports, {rows} verdicts, {len(alarms)} false alarms", *alarms, sep="\n")
    return 1 if alarms else 0


def one(config: Config, seed: int) -> dict[str, Any]:
    """Export and compare one model; what is to be said of it."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mmprod-clean-") as folder:
        report = check(config, seed, Path(folder))
    alarms = [f"{row.subject}: {row.reason}" for row in report.select(status="fail")]
    compared = report.count("pass") + report.count("fail")
    seconds = round(time.perf_counter() - start, 1)
    return {"seed": seed, "rows": compared, "alarms": alarms, "seconds": seconds}


def check(config: Config, seed: int, folder: Path) -> ParityReport:
    """The report of a fresh model's export."""
    dims = config.dims(config.data.vocabulary)
    torch.manual_seed(seed)
    models = Models(build_codec(config.codec).eval(), build_fusion(config.fusion, dims).eval())
    for name, parameter in models.fusion.named_parameters():
        if name.endswith("embed.weight"):
            parameter.data.mul_(LIVELY)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.toml").write_text(to_toml(config))
    run = Run(
        root=folder,
        config=config,
        dims=dims,
        stages={},
        data="data",
        data_fingerprint="",
        versions={},
        files=(),
    )
    rng = np.random.default_rng(seed)
    size, length = config.data.image_size, config.data.text_length
    samples = {
        "pixels": rng.integers(0, 256, (SAMPLES, size, size, 3)).astype(np.uint8),
        "tokens": rng.integers(0, dims.vocabulary, (SAMPLES, length)).astype(np.int32),
    }
    bundle = export_run(run, models, folder / "bundle", precisions=PRECISIONS, samples=samples)

    def reference(spec: GraphSpec) -> TorchRunner:
        module = build_module(
            spec.name, codec=models.codec, fusion=models.fusion, dims=dims, sampler=config.sampler
        )
        return TorchRunner(spec, module)

    return Comparison(bundle, reference, PRECISIONS, BATCHES, NOISE_SEEDS).compare()


if __name__ == "__main__":
    sys.exit(main())
