"""Search among pictures and captions by the embeddings of the model's towers. Torch-free."""

from mmprod.search.about import About
from mmprod.search.embed import Embedder
from mmprod.search.items import Hit, Item, Kind
from mmprod.search.searcher import Searcher
from mmprod.search.table import Table, create_table, is_table, open_table

__all__ = [
    "About",
    "Embedder",
    "Hit",
    "Item",
    "Kind",
    "Searcher",
    "Table",
    "create_table",
    "is_table",
    "open_table",
]
