"""Before the first step: the run folder, its configuration, the data set, the tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmprod.checkpoint import layout
from mmprod.config.keys import flatten
from mmprod.config.load import load_config, to_toml
from mmprod.config.schema import Config, Dims, DistillConfig, FusionConfig
from mmprod.data.store import (
    MANIFEST,
    Split,
    data_fingerprint,
    open_split,
    read_manifest,
    verify_data,
)
from mmprod.data.tokenizer import Tokenizer, train_tokenizer
from mmprod.errors import ConfigError
from mmprod.manifest import sha256_bytes, sha256_file, write_text
from mmprod.training.distributed import World, only_main
from mmprod.training.stopping import StopRequest, only_main_until_stopped

logger = logging.getLogger(__name__)

T = TypeVar("T")

SPLITS = ("train", "val")
SHOWN = 5
"""samples that an error names"""
CHUNK = 1024
"""samples whose captions are looked at together"""


@dataclass(frozen=True)
class Prepared:
    """What both stages read. `data`: the data folder as run.json records it."""

    root: Path
    config: Config
    dims: Dims
    tokenizer: Tokenizer
    splits: dict[str, Split]
    data: str
    fingerprint: str
    tokenizer_sha256: str

    @property
    def config_sha256(self) -> str:
        return hash_of(self.config)


def hash_of(config: Config) -> str:
    """SHA-256 of everything that decides what is trained; where figures go may change on the way.

    Keys that runs made before them lack count only where they are set, so those runs go on.
    """
    left_out: dict[str, Any] = {"log": True}
    if config.distill == DistillConfig():
        left_out["distill"] = True
    if config.fusion.contrast == FusionConfig().contrast:
        left_out["fusion"] = {"contrast"}
    return sha256_bytes(config.model_dump_json(exclude=left_out).encode())


def prepare(
    config: Config, root: Path, world: World, stages: Sequence[str], stop: StopRequest
) -> Prepared:
    """Make or check the run folder for `stages`; rank 0 writes and checks hashes, all ranks open.

    Raises ConfigError, IntegrityError; Preempted when asked to stop meanwhile.
    """

    def unless_stopped(action: Callable[[], T]) -> T:
        return only_main_until_stopped(world, stop, action, "what was prepared so far is kept")

    only_main(world, lambda: claim(config, root))
    data = unless_stopped(lambda: _data(config, root))
    folder = root / data
    unless_stopped(lambda: _verify(folder))
    splits = {name: open_split(folder, name) for name in SPLITS}
    if splits["train"].size != config.data.image_size:
        raise ConfigError(
            f"{folder} holds pictures of {splits['train'].size} pixels, "
            f"data.image_size is {config.data.image_size}",
            hint="prepare the data in that size, or change data.image_size",
        )
    for name, split in splits.items():
        if len(split) == 0:
            raise ConfigError(
                f"the split {name} of {folder} is empty", hint="prepare more pictures"
            )
    if "fusion" in stages:
        unless_stopped(lambda: check_captions(splits, config.data.languages))
    unless_stopped(lambda: _tokenizer(config, root, splits["train"]))
    tokenizer = Tokenizer.load(root / layout.TOKENIZER)
    dims = config.dims(tokenizer.vocab_size)
    hashes = data_fingerprint(folder), sha256_file(root / layout.TOKENIZER)
    return Prepared(root, config, dims, tokenizer, splits, data, *hashes)


def all_splits(prepared: Prepared) -> dict[str, Split]:
    """Every split of the data set (train and val among them)."""
    folder = prepared.root / prepared.data
    names = [name for name, split in read_manifest(folder)["splits"].items() if split["count"]]
    return {name: prepared.splits.get(name) or open_split(folder, name) for name in names}


def claim(config: Config, root: Path) -> None:
    """A new folder gets the configuration; an old one must have the same.

    Raises ConfigError naming the keys.
    """
    path = root / layout.CONFIG
    if path.is_file():
        before, now = (dict(flatten(c)) for c in (load_config(str(path)), config))
        changed = [
            f"{key} (was {before[key]!r}, now {now[key]!r})"
            for key in now
            if before[key] != now[key] and not key.startswith("log.")
        ]
        if changed:
            raise ConfigError(
                f"{root} was made with another configuration: {', '.join(changed)}",
                hint=f"go on with --config {path}, or choose another --out",
            )
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(f"{root} exists and is not a run folder", hint="choose another --out")
    write_text(path, to_toml(config))


def _data(config: Config, root: Path) -> str:
    """The prepared data set's folder, relative to `root` when it lies inside; made here when there
    is none yet.
    """
    source = Path(config.data.path) if config.data.path else None
    if source is not None and (source / MANIFEST).is_file():
        _check_source(config, source)
        return str(source.resolve())
    own = root / layout.DATA
    if not (own / MANIFEST).is_file():
        logger.info("preparing data (%s) in %s", config.data.source, own)
        prepare_data(config, source, own)
    return layout.DATA


def _check_source(config: Config, folder: Path) -> None:
    """A prepared data set is taken as it is, so data.source must not say something else."""
    source = read_manifest(folder)["source"]
    if source != config.data.source:
        raise ConfigError(
            f"data.path {folder} holds a data set made from {source}, "
            f"data.source is {config.data.source}",
            hint=f"-o data.source={source}, or leave data.path empty to make the data anew",
        )
    logger.info("data.path is prepared: data.count, seed and caption_variants have no effect")


def _verify(folder: Path) -> None:
    logger.info("checking the hashes of %s", folder)
    verify_data(folder)


def check_captions(splits: dict[str, Split], languages: Sequence[str]) -> None:
    """Refuse what the fusion stage cannot learn from before anything trains.

    Raises ConfigError for a language that no training sample has, and for samples without a
    caption in any of `languages`.
    """
    hint = "choose data.languages that the data has (see mmprod data stats) with another --out"
    absent = [x for x in languages if next(splits["train"].all_captions((x,)), None) is None]
    if absent:
        raise ConfigError(f"no training sample has a caption in {', '.join(absent)}", hint=hint)
    silent = {name: _without_caption(split, languages) for name, split in splits.items()}
    count = sum(len(indices) for indices in silent.values())
    if count:
        shown = "; ".join(
            f"{name}: {', '.join(splits[name].keys(np.array(indices[:SHOWN])))}"
            for name, indices in silent.items()
            if indices
        )
        raise ConfigError(
            f"{count} samples have no caption in {', '.join(languages)}, among them {shown}",
            hint=f"{hint}; or write captions; or train the codec only (--model codec)",
        )


def _without_caption(split: Split, languages: Sequence[str]) -> list[int]:
    found = []
    for start in range(0, len(split), CHUNK):
        part = np.arange(start, min(start + CHUNK, len(split)))
        if not _all_have(split, languages, part):
            found += [int(i) for i in part if not _all_have(split, languages, np.array([i]))]
    return found


def _all_have(split: Split, languages: Sequence[str], indices: NDArray[np.int64]) -> bool:
    try:
        split.captions(indices, languages, 0)
    except ConfigError:  # what it raises at the first sample without a caption
        return False
    return True


def prepare_data(config: Config, source: Path | None, out: Path) -> None:
    """Make the data set of a configuration in `out`; `source`: its folder of pictures, if any."""
    data = config.data
    if data.source == "folder":
        if source is None:
            raise ConfigError(
                "data.source is folder and data.path is empty", hint="-o data.path=FOLDER"
            )
        from mmprod.data.folder import prepare_folder

        prepare_folder(source, out, size=data.image_size, seed=data.seed)
        return
    if source is not None:
        raise ConfigError(
            f"data.path {source} is not a prepared data set",
            hint="mmprod data prepare makes one; or -o data.source=folder for a folder of images",
        )
    if data.source == "emoji":
        from mmprod.data.emoji import prepare_emoji

        prepare_emoji(out, size=data.image_size, seed=data.seed)
        return
    from mmprod.data.avatars import prepare_avatars

    prepare_avatars(
        out,
        count=data.count,
        size=data.image_size,
        seed=data.seed,
        variants=data.caption_variants,
    )


def _tokenizer(config: Config, root: Path, train: Split) -> None:
    path = root / layout.TOKENIZER
    if not path.is_file():
        train_tokenizer(train.all_captions(config.data.languages), config.data.vocabulary).save(
            path
        )
