"""The one thing that asks an index: what `mmprod search query` and a server call.

text ----- embed_text ----+
                          +--> vector --> the nearest items of the wanted kind
picture -- embed_image ---+
"""

from __future__ import annotations

from mmprod.errors import ConfigError
from mmprod.search.embed import Embedder
from mmprod.search.items import Hit, Kind, Pixels, Vector
from mmprod.search.table import Table

MOST = 10_000
"""hits that may be asked for"""


class Searcher:
    """An index and the model that made it. Several threads may search at the same time, while
    another process writes: each search sees the index whole, as it was after some write.
    """

    def __init__(self, table: Table, embedder: Embedder) -> None:
        self._table = table
        self._embedder = embedder

    def search(
        self, query: str | Pixels, k: int = 10, *, want: Kind = "image", exact: bool = False
    ) -> list[Hit]:
        """The k items that are most similar to a text or a picture (H, W, 3) uint8, best first.

        A caption that many pictures share is given once. `exact`: look at every item, even where
        partitions are there to look at few. Raises ConfigError for a k beyond 1 to MOST.
        """
        if not 1 <= k <= MOST:
            raise ConfigError(f"{k} hits cannot be searched for", hint=f"1 to {MOST}")
        vector = self.embed(query)
        if want == "image":
            return self._table.nearest(vector, k, want, exact=exact)
        distinct: dict[str, Hit] = {}
        asked = k
        while len(distinct) < k:
            known = list(distinct)
            found = self._table.nearest(vector, asked, want, exact=exact, known=known)
            for hit in found:
                distinct.setdefault(hit.text, hit)
            if len(found) < asked:
                break
            asked = min(asked * 4, MOST)
        return list(distinct.values())[:k]

    def embed(self, query: str | Pixels) -> Vector:
        """The unit vector (E,) of a text or a picture."""
        if isinstance(query, str):
            vectors = self._embedder.texts([query])
        else:
            vectors = self._embedder.pictures(query[None]).vectors
        first: Vector = vectors[0]
        return first
