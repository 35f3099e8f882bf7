"""The only file that imports PyYAML: structured data as YAML, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from mmprod.errors import IntegrityError


def to_yaml(documents: Sequence[Any], comments: Sequence[str] = ()) -> str:
    """Documents in the order of their keys, without aliases; comments stand at the head."""
    head = "".join(f"# {line}\n" for line in comments)
    text: str = yaml.dump_all(
        documents,
        Dumper=_Plain,
        sort_keys=False,
        width=100,
        explicit_start=len(documents) > 1,
        allow_unicode=True,
    )
    return head + text


def from_yaml(text: str) -> list[Any]:
    """The documents. Raises IntegrityError with the line for what is no YAML."""
    try:
        return [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise IntegrityError(f"not YAML: {error}", hint="render it again") from error


class _Plain(yaml.SafeDumper):  # type: ignore[misc]
    """Equal parts are written out each time: references are legal and nobody reads them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
