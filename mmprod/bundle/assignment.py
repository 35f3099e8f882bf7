"""Which precision each graph was given by `mmprod export --precision auto`, as the bundle keeps it.

Where a command takes a precision, `auto` stands for the one that the export assigned to the graph.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmprod.bundle.bundle import Bundle
from mmprod.errors import ConfigError

AUTO = "auto"
_HINT = "mmprod export RUN --precision auto assigns them; or name a precision"


def assign(bundle: Bundle, chosen: Mapping[str, str]) -> None:
    """Keep the precision of each graph in the bundle; `save` it afterwards."""
    bundle.put_summary("assignment", dict(chosen))


def resolve(bundle: Bundle, graph: str, precision: str) -> str:
    """`precision`, or for `auto` the one of this graph. Raises ConfigError when it has none."""
    if precision != AUTO:
        return precision
    chosen = bundle.summaries.get("assignment", {}).get(graph)
    if chosen is None:
        raise ConfigError(f"{bundle.root} has no precision assigned to {graph}", hint=_HINT)
    return str(chosen)
