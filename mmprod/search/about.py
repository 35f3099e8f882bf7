"""Which model made the embeddings of an index. Vectors of two models have nothing in common, so an
index is of one model, and a query through another is refused.

The model is known by the hashes of its weights and tokenizer, which a run and every bundle exported
from it share, and by the precision of its graphs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mmprod.errors import IntegrityError

FORMAT = 1


@dataclass(frozen=True)
class About:
    """files: what the embedding depends on, name -> SHA-256. embedding: E. positions: N.

    source: the run or bundle that was used; only a proposal of where to look for the model.
    """

    files: Mapping[str, str]
    precision: str
    embedding: int
    positions: int
    source: str

    def dumps(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)

    @classmethod
    def parse(cls, text: str, where: str) -> About:
        """Read what `dumps` wrote. Raises IntegrityError."""
        try:
            content: dict[str, Any] = json.loads(text)
            version = content.pop("format")
            if version != FORMAT:
                raise IntegrityError(
                    f"{where} has index format {version}, this version reads {FORMAT}",
                    hint="use the version of mmprod that wrote it, or make the index again",
                )
            found = cls(**content)
            if not isinstance(found.files, dict) or not isinstance(found.embedding, int):
                raise TypeError(f"fields of other types: {content}")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise IntegrityError(
                f"{where} does not say which model made it: {error!r}", hint="make the index again"
            ) from error
        return found

    def check_same(self, other: About, where: str) -> None:
        """Raise IntegrityError when `other`, a model at hand, is not the one of this index."""
        different = sorted(
            name
            for name in {*self.files, *other.files}
            if self.files.get(name) != other.files.get(name)
        )
        if different:
            raise IntegrityError(
                f"{where} was made by another model than {other.source}: "
                f"{', '.join(different)} differ",
                hint=f"give the model it was made by (it was at {self.source}), or make a new "
                "index with this one",
            )
        if self.precision != other.precision:
            raise IntegrityError(
                f"{where} was made by graphs in {self.precision}, not in {other.precision}",
                hint=f"--precision {self.precision}",
            )
