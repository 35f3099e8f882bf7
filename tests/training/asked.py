"""A whole job that is slow in one phase, so that a signal can be sent right then.

asked.py RUN PHASE DEEPSPEED|none: trains tests' mini job; in PHASE it writes RUN.PHASE and dawdles.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHASES = ("prepare", "tokenizer", "initialize", "warm-up", "save", "evaluation", "codes")


def slow_down(phase: str, marker: Path) -> None:
    """Put the delay in place."""
    from mmprod.training import codec_task, codes, loop, prepare, run, saving

    places: dict[str, tuple[Any, str, float]] = {
        "prepare": (prepare, "prepare_data", 60),
        "tokenizer": (prepare, "train_tokenizer", 60),
        "initialize": (run, "build_backend", 3),
        "warm-up": (loop, "train_step", 2),
        "save": (saving.Saver, "_publish", 2),
        "evaluation": (codec_task.CodecTask, "evaluate", 60),
        "codes": (codes, "_encode", 1),
    }
    owner, name, seconds = places[phase]
    setattr(owner, name, dawdling(getattr(owner, name), marker, seconds))


def dawdling(function: Callable[..., Any], marker: Path, seconds: float) -> Callable[..., Any]:
    """`function`, after a while in which nothing but time passes."""

    def slow(*arguments: Any, **named: Any) -> Any:
        marker.touch()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.01)
        return function(*arguments, **named)

    return slow


def main(root: Path, phase: str, deepspeed: str) -> None:
    from mmprod.errors import MmprodError
    from mmprod.training.distributed import leave
    from mmprod.training.run import train
    from tests.training.mini import TRAIN, mini_config

    if phase in PHASES:
        slow_down(phase, root.with_name(f"{root.name}.{phase}"))
    changes = {**TRAIN, "batch": 16}
    config = mini_config(codec_train=changes, fusion_train=changes)
    try:
        train(config, root, deepspeed=None if deepspeed == "none" else Path(deepspeed))
    except MmprodError as error:
        print(error.message, flush=True)
        leave(error.exit_code, error.message)
    leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
