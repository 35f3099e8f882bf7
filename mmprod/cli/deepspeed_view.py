"""The table of a DeepSpeed file (what each key asks for, what DeepSpeed gets, and why), and what is
refused before ranks meet.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprod.cli.output import Table, shown
from mmprod.errors import ConfigError, MmprodError
from mmprod.training.environment import adopt

if TYPE_CHECKING:
    from mmprod.config.schema import Config

NOTHING = "-"


def deepspeed_view(
    config: Config, path: Path, world: int, stages: Sequence[str] = ("codec", "fusion")
) -> tuple[dict[str, Any], list[Table]]:
    """A document and a table for each stage, as `world` processes would train it.

    Raises ConfigError where the file and the configuration say different things.
    """
    from mmprod.training.batches import check_batches
    from mmprod.training.deepspeed_config import read_deepspeed, resolve

    raw = read_deepspeed(path)
    check_batches(config, stages, raw, world)
    document: dict[str, Any] = {}
    tables = []
    for stage in stages:
        resolved = resolve(raw, getattr(config, f"{stage}_train"), world, f"{stage}_train")
        document[stage] = {
            "config": resolved.config,
            "stage": resolved.stage,
            "weights": resolved.weights,
            "accumulation": resolved.accumulation,
            "offload": resolved.offload,
            "table": [asdict(line) | {"changed": line.changed} for line in resolved.table],
        }
        ranks = f"{world} {'process' if world == 1 else 'processes'}"
        title = f"{shown(path)} for {stage}_train on {ranks}: ZeRO {resolved.stage}, "
        title += f"{resolved.weights} weights"
        rows = [
            (line.key, _plain(line.asked), _plain(line.resolved), line.why)
            for line in resolved.table
        ]
        tables.append(Table(title, ("key", "asked", "DeepSpeed gets", "why"), rows))
    return {"world": world, "file": str(path), "stages": document}, tables


def check_before_launch(
    config: Config, path: Path | None, stages: Sequence[str], world: int
) -> None:
    """Refuse a DeepSpeed file or a batch that `world` processes cannot train with, before any
    starts. Raises ConfigError.
    """
    from mmprod.training.batches import check_batches
    from mmprod.training.deepspeed_config import read_deepspeed

    raw = read_deepspeed(path) if path is not None else None
    check_batches(config, stages, raw, world)


@contextlib.contextmanager
def all_ranks_hear(*, starts: bool) -> Iterator[None]:
    """An error in here on one rank of a launcher's, before the ranks have met, becomes the error of
    all: without a word the others would wait for it.

    starts: this process is no rank, it starts them.
    """
    try:
        yield
    except MmprodError as error:
        if not starts and _is_one_of_several():
            from mmprod.training.handshake import fail_together

            fail_together(error)
        raise


def _is_one_of_several() -> bool:
    """No for an environment that is half set: nobody can be met then, and the error at hand is to
    be heard first.
    """
    try:
        return adopt().size > 1
    except ConfigError:
        return False


def _plain(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) >= 1e5:
        return f"{value:g}"
    return NOTHING if value is None else json.dumps(value)
