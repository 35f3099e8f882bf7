"""Creating and opening bundle folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprod.bundle.bundle import Bundle
from mmprod.bundle.files import HINT, read_index
from mmprod.bundle.place import Place
from mmprod.bundle.signing import check_index, trusted_keys
from mmprod.config.schema import Dims, SamplerConfig
from mmprod.errors import IntegrityError


def create_bundle(
    root: Path | str,
    *,
    name: str,
    dims: Dims,
    sampler: SamplerConfig,
    provenance: Mapping[str, Any],
) -> Bundle:
    """Start an empty bundle in a new or empty folder. Raises ConfigError when it holds anything.

    Readers refuse it until it was saved with a graph inside.
    """
    root = Path(root)
    Place(root).check()
    root.mkdir(parents=True, exist_ok=True)
    bundle = Bundle(root, name=name, dims=dims, sampler=sampler, provenance=provenance)
    bundle.save()
    return bundle


def open_bundle(
    root: Path | str, *, verify: bool = True, trusted: Sequence[Path] | None = None
) -> Bundle:
    """Open a bundle: bundle.json is checked against bundle.sha256, then every file of the folder.

    `verify=False` leaves all files but bundle.json unchecked, for callers that check the few they
    read with `Bundle.verify`. trusted: public keys of which one must have signed; None: those of
    MMPROD_TRUSTED_KEYS, if set; (): no signature is asked for. Raises IntegrityError naming the
    first thing that is wrong; a bundle without graphs is, too: its export did not get that far.
    """
    root = Path(root)
    index = read_index(root)
    keys = trusted_keys() if trusted is None else trusted
    if keys:
        check_index(root, index, keys)
    bundle = Bundle.parse(root, index)
    if not bundle.artefacts(role="onnx"):
        raise IntegrityError(f"{root} holds no graphs: it was never finished", hint=HINT)
    if verify:
        bundle.verify()
    return bundle
