"""Names of the files in a run folder. Written by training, read here.

run/config.toml  run.json  tokenizer.json  data/  codes/{train,...}.npy, codes.json
run/{codec,fusion}/metrics.jsonl  tensorboard/  samples/step-000500.png
                   model.safetensors  config.json  init.json  curves.html
                   checkpoints/{step-00000500/,latest,best}
step-00000500/     state-00000.safetensors ..., buffers.safetensors, manifest.json (see state.py)
"""

from __future__ import annotations

from pathlib import Path

RUN = "run.json"
CONFIG = "config.toml"
TOKENIZER = "tokenizer.json"
DATA = "data"
CODES = "codes"
WEIGHTS = "model.safetensors"
CODEBOOK = "codebook"
"""key of its metadata: JSON that says what the codebook's tensors mean"""
STAGE = "config.json"
METRICS = "metrics.jsonl"
INIT = "init.json"
CURVES = "curves.html"
CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
LATEST = "latest"
BEST = "best"


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def sample_path(stage_folder: Path, step: int) -> Path:
    return stage_folder / "samples" / f"step-{step:06d}.png"
