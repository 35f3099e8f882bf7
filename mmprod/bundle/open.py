"""Creating, opening and removing bundle folders."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmprod.bundle.bundle import Bundle
from mmprod.bundle.files import DIGEST, INDEX, read_index
from mmprod.config.schema import Dims, SamplerConfig
from mmprod.errors import ConfigError


def create_bundle(
    root: Path | str,
    *,
    name: str,
    dims: Dims,
    sampler: SamplerConfig,
    provenance: Mapping[str, Any],
) -> Bundle:
    """Start an empty bundle in a new or empty folder. Raises ConfigError when it holds anything."""
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(f"{root} exists and is not empty", hint="give another folder")
    root.mkdir(parents=True, exist_ok=True)
    bundle = Bundle(root, name=name, dims=dims, sampler=sampler, provenance=provenance)
    bundle.save()
    return bundle


def open_bundle(root: Path | str, *, verify: bool = True) -> Bundle:
    """Open a bundle: bundle.json is checked against bundle.sha256, then every file of the folder.

    `verify=False` leaves all files but bundle.json unchecked, for callers that check the few they
    read with `Bundle.verify`. Raises IntegrityError naming the first thing that is wrong.
    """
    root = Path(root)
    bundle = Bundle.parse(root, read_index(root))
    if verify:
        bundle.verify()
    return bundle


def remove_bundle(root: Path | str) -> None:
    """Delete a bundle folder. Raises ConfigError when it is none, so nothing else gets deleted."""
    root = Path(root)
    if root.is_symlink() or not (root / INDEX).is_file() or not (root / DIGEST).is_file():
        raise ConfigError(
            f"{root} is not a bundle, so it was not deleted", hint="delete it yourself"
        )
    shutil.rmtree(root)
