"""What the command line does while a stage trains, beside progress: where the first weights are
from, in a table on stderr, and curves.html after each evaluation.

Neither can end a training: a disk that is full, a broken metrics.jsonl or init.json is a warning
here.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mmprod.cli.output import Output, Table, draw
from mmprod.errors import MmprodError

if TYPE_CHECKING:
    from mmprod.training.events import Event, OnEvent

logger = logging.getLogger(__name__)


def watched(out: Output, run: Path, on_event: OnEvent | None) -> OnEvent:
    """A receiver of training events that also draws curves and shows what `init_from` gave, and
    passes every event on.
    """

    def receive(event: Event) -> None:
        if on_event is not None:
            on_event(event)
        if event.kind == "stage" and event.step == 0:
            show_transfer(out, run / event.stage)
        if event.kind == "eval":
            draw_curves(run / event.stage)

    return receive


def draw_curves(stage_folder: Path) -> None:
    """Write the page of a stage; say so in the log when it cannot be written."""
    from mmprod.report.curves import write_curves

    try:
        write_curves(stage_folder)
    except (OSError, MmprodError) as error:
        logger.warning("no curves.html: %s", error)


def show_transfer(out: Output, stage_folder: Path) -> None:
    """The verdicts of init.json as a table on stderr, or in the log that it cannot be read; nothing
    where a stage began from nothing.
    """
    from mmprod.training.transfer import read_transfer

    try:
        transfer = read_transfer(stage_folder)
    except (OSError, MmprodError) as error:
        logger.warning("not shown what was loaded: %s", error)
        return
    if transfer is None or out.verbosity < 0:
        return
    rows = [
        (row.part, row.verdict, len(row.names), f"{row.values:,}", row.reason)
        for row in transfer.rows()
    ]
    columns = ("part", "verdict", "tensors", "values", "why")
    draw(Table(f"{transfer.stage}: {transfer.summary()}", columns, rows), sys.stderr)
