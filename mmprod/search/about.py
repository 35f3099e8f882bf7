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

from mmprod.bundle.figures import run_files
from mmprod.errors import ConfigError, IntegrityError

FORMAT = 1
FILES = ("codec/model.safetensors", "fusion/model.safetensors", "tokenizer.json")
"""files of a run that an embedding depends on"""


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

    def check_files(self, other: Mapping[str, str], where: str, source: str) -> None:
        """Raise IntegrityError when `other`, hashes of the model at `source`, are not those of this
        index.
        """
        different = sorted(
            name for name in {*self.files, *other} if self.files.get(name) != other.get(name)
        )
        if different:
            raise IntegrityError(
                f"{where} was made by another model than {source}: {', '.join(different)} differ",
                hint=f"give the model it was made by (it was at {self.source}), or make a new "
                "index with this one",
            )

    def check_same(self, other: About, where: str) -> None:
        """Raise IntegrityError when `other`, a model at hand, is not the one of this index."""
        self.check_files(other.files, where, other.source)
        if self.precision != other.precision:
            raise IntegrityError(
                f"{where} was made by graphs in {self.precision}, not in {other.precision}",
                hint=f"--precision {self.precision}",
            )


def files_of(provenance: Mapping[str, Any], where: str) -> dict[str, str]:
    """SHA-256 of each of FILES, as the run recorded it. Raises ConfigError where one is missing."""
    found = run_files(provenance)
    lacking = [name for name in FILES if name not in found]
    if lacking:
        raise ConfigError(
            f"{where} does not say which {', '.join(lacking)} it was made from",
            hint="an index needs a trained codec and fusion model: mmprod train, mmprod export",
        )
    return {name: found[name] for name in FILES}
