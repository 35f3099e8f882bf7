"""Hits of a search put in a new order by the likelihood of the query given each of them.

By Bayes' rule the item that most likely belongs to a query is the one that makes the query most
likely, if all items are equally likely beforehand: log p(text | picture) orders pictures for a
text, log p(picture | text) texts for a picture. The other way round, log p(picture | text) would
order pictures by how plain they are.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from mmprod.errors import ConfigError, NumericsError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mmprod.cli.source import Source
    from mmprod.search import Hit, Kind, Table

    Ids = npt.NDArray[np.int32]
    Pixels = npt.NDArray[np.uint8]

DRAWS = 16
"""masks of the text over which its likelihood is averaged; all pictures have the same ones"""


def check_rerank(rerank: int, k: int, *, words: bool, want: Kind) -> None:
    """Raise ConfigError where there is no likelihood to order by."""
    if not rerank:
        return
    if words == (want == "text"):
        raise ConfigError(
            "--rerank compares a text with pictures or a picture with texts",
            hint=f"--want {'image' if words else 'text'}, or leave --rerank out",
        )
    if rerank < k:
        raise ConfigError(
            f"--rerank {rerank} orders fewer than the {k} asked for", hint=f"--rerank {4 * k}"
        )


def reranked(source: Source, table: Table, query: str | Pixels, hits: list[Hit]) -> list[Hit]:
    """The hits, likeliest first; `score` is then the log likelihood of the query, in nats."""
    import numpy as np

    if isinstance(query, str):
        codes = table.codes([hit.name for hit in hits])
        hits = [hit for hit in hits if hit.name in codes]  # another command may have deleted some
    if not hits:
        return hits
    if isinstance(query, str):
        held = np.stack([codes[hit.name] for hit in hits])
        scores = _text_given_pictures(source, query, held)
    else:
        scores = _picture_given_texts(source, query, [hit.text for hit in hits])
    if not np.isfinite(scores).all():
        raise NumericsError(
            "a likelihood of the re-ranking is NaN or infinite",
            hint="mmprod parity run BUNDLE finds the graph; leave --rerank out",
        )
    order = sorted(range(len(hits)), key=lambda place: -scores[place])
    return [replace(hits[place], score=float(scores[place])) for place in order]


def _text_given_pictures(source: Source, text: str, codes: Ids) -> npt.NDArray[np.float64]:
    """log p(text | picture) of each picture (B, N), in nats (B,): minus the any-order bound."""
    import numpy as np

    from mmprod.evaluation.likelihood import GRAPH, estimate, random_masks
    from mmprod.sampling import log_likelihood

    tokens = source.tokenizer.encode([text], source.dims.text_length).repeat(len(codes), 0)
    total = np.zeros(len(codes))
    with closing(source.runner(GRAPH)) as runner:
        for mask in random_masks(1, source.dims.text_length, DRAWS, [0, 1]):
            hidden = mask.repeat(len(codes), 0)
            shown = np.where(hidden, np.int32(source.dims.vocabulary), tokens)
            found = log_likelihood(runner, codes, shown, "text_logits", tokens)
            total -= estimate(found, hidden) / DRAWS
    return total


def _picture_given_texts(
    source: Source, picture: Pixels, texts: list[str]
) -> npt.NDArray[np.float64]:
    """log p(picture | text) of each text (B,), in nats."""
    from mmprod.evaluation.likelihood import GRAPH
    from mmprod.sampling import likelihood

    with closing(source.runner("codec_encode")) as encode:
        codes = encode({"pixels": picture[None]})["codes"].repeat(len(texts), 0)
    tokens = source.tokenizer.encode(texts, source.dims.text_length)
    with closing(source.runner(GRAPH)) as runner:
        return likelihood(runner, source.dims, codes, tokens)
