"""Codes of all pictures, computed once between the stages (fp32, averaged weights) and cached.

run/codes/<split>.npy (count, N) int32, <split>-mirrored.npy when data.flip, and codes.json with
the SHA-256 of the codec's weights and of the data set: when either differs the codes are computed
again. Pictures are encoded in chunks of fixed borders, so the codes do not depend on the number
of ranks.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mmprod.checkpoint import layout
from mmprod.data.store import Split
from mmprod.errors import IntegrityError
from mmprod.manifest import FileEntry, read_json, verify_files, write_json
from mmprod.models.codec import Codec
from mmprod.training.distributed import World, barrier, only_main
from mmprod.training.stopping import StopRequest, raise_if_stopped

logger = logging.getLogger(__name__)

FORMAT = 1
CHUNK = 64
"""pictures per forward pass; part of what the codes are computed from, so a constant"""

Rows = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Codes:
    """The cached codes of one split."""

    plain: Rows
    mirrored: Rows | None

    def rows(self, indices: npt.NDArray[np.integer]) -> Rows:
        """indices (B,) -> codes (B, N) int32, a copy in memory."""
        return np.array(self.plain[indices])

    def mirrored_rows(self, indices: npt.NDArray[np.integer]) -> Rows:
        """As `rows`, of the mirrored pictures."""
        if self.mirrored is None:
            raise ValueError("no codes of mirrored pictures were computed")
        return np.array(self.mirrored[indices])


@dataclass(frozen=True)
class CodeSource:
    """What codes are computed from.

    `weights`: SHA-256 of the codec's weights, `data`: fingerprint of the data set.
    """

    codec: Codec
    weights: str
    data: str
    mirror: bool


def load_or_compute(
    root: Path, splits: dict[str, Split], source: CodeSource, world: World, stop: StopRequest
) -> dict[str, Codes]:
    """The codes of `splits`, from run/codes where they are valid. Collective.

    Raises Preempted when asked to stop while computing.
    """
    folder = root / layout.CODES
    wanted: dict[str, Any] = {
        "format": FORMAT,
        "codec_sha256": source.weights,
        "data": source.data,
        "mirror": source.mirror,
        "counts": {name: len(split) for name, split in splits.items()},
    }
    if not only_main(world, lambda: _valid(folder, wanted)):
        only_main(world, lambda: (folder / "codes.json").unlink(missing_ok=True))
        logger.info("computing codes of %d pictures", sum(len(split) for split in splits.values()))
        for name, split in splits.items():
            for mirrored in (False, True) if source.mirror else (False,):
                path = _path(folder, name, mirrored)
                _compute(path, split, source.codec, mirrored, world, stop)
        only_main(world, lambda: _write_record(folder, wanted))
    return {
        name: Codes(
            _open(_path(folder, name, False)),
            _open(_path(folder, name, True)) if source.mirror else None,
        )
        for name in splits
    }


def _path(folder: Path, split: str, mirrored: bool) -> Path:
    return folder / (f"{split}-mirrored.npy" if mirrored else f"{split}.npy")


def _open(path: Path) -> Rows:
    rows: Rows = np.load(path, mmap_mode="r", allow_pickle=False)
    return rows


def _valid(folder: Path, wanted: dict[str, Any]) -> bool:
    """Whether codes.json describes these codes and every file still has its hash."""
    if not (folder / "codes.json").is_file():
        return False
    try:
        record = read_json(folder / "codes.json")
        if {key: record.get(key) for key in wanted} != wanted:
            logger.info("the codec or the data changed since the codes were computed")
            return False
        verify_files(folder, [FileEntry(**entry) for entry in record["files"]])
    except (IntegrityError, AttributeError, KeyError, TypeError) as error:
        logger.warning("cached codes are damaged and will be computed again: %s", error)
        return False
    return True


def _write_record(folder: Path, wanted: dict[str, Any]) -> None:
    files = [FileEntry.of(folder, path).as_dict() for path in sorted(folder.glob("*.npy"))]
    write_json(folder / "codes.json", {**wanted, "files": files})


def _compute(
    path: Path, split: Split, codec: Codec, mirrored: bool, world: World, stop: StopRequest
) -> None:
    """Rank r encodes chunks r, r + world, ... into one shared file.

    Until codes.json exists the file counts for nothing.
    """
    first = _encode(split, codec, 0, mirrored, world)
    shape = (len(split), first.shape[1])

    def create() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = np.lib.format.open_memmap(path, "w+", np.int32, shape)
        rows.flush()

    only_main(world, create)
    rows = np.lib.format.open_memmap(path, "r+")
    for turn in range(0, len(split), world.size * CHUNK):
        raise_if_stopped(world, stop, "the codec is trained, its codes are computed anew next time")
        start = turn + world.rank * CHUNK
        if start < len(split):
            rows[start : start + CHUNK] = _encode(split, codec, start, mirrored, world)
    rows.flush()
    barrier(world)


@torch.no_grad()
def _encode(split: Split, codec: Codec, start: int, mirrored: bool, world: World) -> Rows:
    pixels = split.images(np.arange(start, min(start + CHUNK, len(split))))
    if mirrored:
        pixels = np.ascontiguousarray(pixels[:, :, ::-1])
    codes: Rows = codec.encode(torch.from_numpy(pixels).to(world.device)).cpu().numpy()
    return codes
