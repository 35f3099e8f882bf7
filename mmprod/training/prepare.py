"""Before the first step: the run folder, its configuration, the data set, the tokenizer."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from mmprod.checkpoint import layout
from mmprod.config.keys import flatten
from mmprod.config.load import load_config, to_toml
from mmprod.config.schema import Config, Dims
from mmprod.data.store import MANIFEST, Split, data_fingerprint, open_split, read_manifest
from mmprod.data.tokenizer import Tokenizer, train_tokenizer
from mmprod.errors import ConfigError
from mmprod.manifest import sha256_bytes, write_text
from mmprod.training.distributed import World, only_main

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")


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

    @property
    def config_sha256(self) -> str:
        return sha256_bytes(self.config.model_dump_json().encode())


def prepare(config: Config, root: Path, world: World) -> Prepared:
    """Make or check the run folder; rank 0 writes, all ranks open.

    Raises ConfigError, IntegrityError.
    """
    only_main(world, lambda: _claim(config, root))
    data = only_main(world, lambda: _data(config, root))
    folder = root / data
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
    only_main(world, lambda: _tokenizer(config, root, splits["train"]))
    tokenizer = Tokenizer.load(root / layout.TOKENIZER)
    dims = Dims.of(config, tokenizer.vocab_size)
    return Prepared(root, config, dims, tokenizer, splits, data, data_fingerprint(folder))


def all_splits(prepared: Prepared) -> dict[str, Split]:
    """Every split of the data set (train and val among them)."""
    folder = prepared.root / prepared.data
    names = [name for name, split in read_manifest(folder)["splits"].items() if split["count"]]
    return {name: prepared.splits.get(name) or open_split(folder, name) for name in names}


def _claim(config: Config, root: Path) -> None:
    """A new folder gets the configuration; an old one must have the same.

    Raises ConfigError naming the keys.
    """
    path = root / layout.CONFIG
    if path.is_file():
        before, now = (dict(flatten(c)) for c in (load_config(str(path)), config))
        changed = [
            f"{key} (was {before[key]!r}, now {now[key]!r})"
            for key in now
            if before[key] != now[key]
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
        return str(source.resolve())
    own = root / layout.DATA
    if not (own / MANIFEST).is_file():
        logger.info("preparing data (%s) in %s", config.data.source, own)
        _prepare_data(config, source, own)
    return layout.DATA


def _prepare_data(config: Config, source: Path | None, out: Path) -> None:
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
