"""The model behind an index: which one it is, and its towers ready for use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmprod.cli.source import Backend, Source, open_source
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    from mmprod.search import About, Embedder, Table


def about(path: Path, source: Source, precision: str) -> About:
    """Which model a run or bundle is, as an index keeps it.

    Raises ConfigError for a bundle that does not say of which run it is.
    """
    from mmprod.search import About
    from mmprod.search.about import files_of

    return About(
        files=files_of(source.provenance, str(path)),
        precision=precision,
        embedding=source.dims.embedding,
        positions=source.dims.positions,
        source=str(path.resolve()),
    )


def open_embedder(source: Source) -> Embedder:
    """The towers of a model; `close` it after use."""
    from mmprod.search import Embedder
    from mmprod.search.embed import GRAPHS

    runners = {name: source.runner(name) for name in GRAPHS}
    return Embedder(runners, source.tokenizer, source.dims)


def open_model(table: Table, given: Path | None, backend: Backend | None) -> Source:
    """The model that made an index: the one given, or the one whose place the index remembers.

    Raises IntegrityError when it is another model, ConfigError when it is not there.
    """
    path = given or Path(table.about.source)
    if given is None and not path.is_dir():
        raise ConfigError(
            f"the model that made {table.place} is no longer at {path}",
            hint="say where it is: --source RUN|BUNDLE",
        )
    precision = table.about.precision
    source = open_source(path, backend, precision)
    table.about.check_same(about(path, source, precision), table.place)
    return source
