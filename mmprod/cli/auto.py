"""`mmprod export --precision auto`: try every precision, keep of each graph the smallest that
passes parity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mmprod.cli.gate import check
from mmprod.cli.output import Output, Table, megabytes
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    from mmprod.bundle import Bundle
    from mmprod.checkpoint import Run
    from mmprod.parity.choose import Option


def candidates(
    asked: Sequence[str], targets: Sequence[str], check_target: Callable[[str, str], object]
) -> tuple[str, ...]:
    """The precisions to try: those that engines can be built in for every target, and fp32, which
    is always exported.

    `check_target` raises ConfigError for a precision and a target that do not go together.
    """
    from mmprod.export.precision import PRECISIONS

    if len(asked) > 1:
        raise ConfigError(
            f"auto tries every precision, so {', '.join(asked)} cannot be asked for",
            hint="--precision auto, or precisions by name",
        )
    refused: dict[str, ConfigError] = {}
    for precision in PRECISIONS:
        try:
            for target in targets:
                check_target(precision, target)
        except ConfigError as error:
            refused[precision] = error
    if len(refused) == len(PRECISIONS):
        raise refused["fp16"]
    return tuple(p for p in PRECISIONS if p == "fp32" or p not in refused)


def narrow(out: Output, bundle: Bundle, run: Run) -> list[Option]:
    """Compare all graphs of a fresh bundle with the run, and keep the smallest that pass."""
    from mmprod.parity.choose import choose, keep_chosen

    options = choose(check(out, bundle, run))
    keep_chosen(bundle, options)
    return options


def option_table(options: Sequence[Option]) -> Table:
    """One line per graph and precision that was tried."""
    rows = [
        (
            option.graph,
            option.precision,
            megabytes(option.bytes),
            f"{option.ms:.2f} ms",
            option.status,
            "kept" if option.chosen else "",
        )
        for option in options
    ]
    columns = ("graph", "precision", "size", "a sample in ORT", "parity", "")
    return Table("Precisions tried", columns, rows)
