"""The one thing that asks an index: what `mmprod search query` and a server call.

text ----- embed_text ----+
                          +--> vector --> the nearest items of the wanted kind
picture -- embed_image ---+
"""

from __future__ import annotations

from mmprod.search.embed import Embedder
from mmprod.search.items import Hit, Kind, Pixels, Vector
from mmprod.search.table import Table

MOST = 10_000
"""hits that a search gives at most"""


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
        partitions are there to look at few.
        """
        vector = self.embed(query)
        if want == "image":
            return self._table.nearest(vector, k, want, exact=exact)
        asked = k
        while True:
            found = self._table.nearest(vector, asked, want, exact=exact)
            distinct = list({hit.text: hit for hit in reversed(found)}.values())[::-1]
            if len(distinct) >= k or len(found) < asked or asked >= MOST:
                return distinct[:k]
            asked = min(asked * 4, MOST)

    def embed(self, query: str | Pixels) -> Vector:
        """The unit vector (E,) of a text or a picture."""
        if isinstance(query, str):
            vectors = self._embedder.texts([query])
        else:
            vectors = self._embedder.pictures(query[None]).vectors
        first: Vector = vectors[0]
        return first
