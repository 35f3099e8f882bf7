"""Pictures <-> bytes with one codec: tiles, prior and container put together.

    pixels --tiles.encode--> codes --write_file(prior)--> bytes
    bytes --read_file(prior)--> codes --tiles.decode--> pixels

It sees runners and the facts of a codec, so a run and a bundle work alike. A file is proved before
it is handed out: it is read again, and what it gives must be the codes that went in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from mmprod.bitstream import tiles
from mmprod.bitstream.container import check_size, check_total, describe
from mmprod.bitstream.file import check_codes, read_file, write_file
from mmprod.bitstream.fusion_prior import FusionPrior
from mmprod.bitstream.names import check_name
from mmprod.bitstream.picture import CodecId, Picture
from mmprod.bitstream.priors import Prior, PriorName, RawPrior, StaticPrior
from mmprod.bitstream.tables import static_table
from mmprod.bitstream.tiles import Geometry, Pixels
from mmprod.config.schema import Dims
from mmprod.errors import IntegrityError
from mmprod.graphs.codec_facts import CodecFacts
from mmprod.graphs.runner import Runner

PORTABLE: tuple[PriorName, ...] = ("raw", "static")
"""Priors whose files are the same, and can be read, on every machine."""


@dataclass(frozen=True)
class Restored:
    """One picture as it comes back."""

    name: str
    pixels: Pixels


@dataclass(frozen=True)
class Entry:
    """One picture of a file: pixels, and PSNR in dB of what comes back (infinite: equal)."""

    name: str
    height: int
    width: int
    psnr: float


@dataclass(frozen=True)
class Compressed:
    """A proved file. code_bits: information content of its codes under the prior."""

    data: bytes
    entries: tuple[Entry, ...]
    code_bits: float

    @property
    def bits_per_pixel(self) -> float:
        """Of the whole file, header included."""
        return 8 * len(self.data) / sum(entry.height * entry.width for entry in self.entries)


class Compressor:
    """A codec ready for pictures of any size. A context manager: leaving it closes its runners.

    `open_runner` opens a graph by name; each is opened when first needed, and `code_prior` only for
    the fusion prior.
    """

    def __init__(self, dims: Dims, facts: CodecFacts, open_runner: Callable[[str], Runner]) -> None:
        self.geometry = Geometry.of(dims)
        self.codec = CodecId(facts.digest, dims.codebook_size, dims.planes, self.geometry.factor)
        self._rate = facts.rate
        self._open = open_runner
        self._runners: dict[str, Runner] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()

    @property
    def backend(self) -> str:
        """What executed the graphs that were used; empty before the first."""
        return ", ".join(dict.fromkeys(runner.backend for runner in self._runners.values()))

    def compress(self, pictures: Iterable[tuple[str, Pixels]], prior: PriorName) -> Compressed:
        """(name or "", pixels (H, W, 3) uint8) of each picture -> one file.

        One picture is held at a time, if `pictures` is lazy. Raises ConfigError at the picture that
        leaves the limits of the format, before it is encoded; IntegrityError when the file does not
        give its codes back.
        """
        chosen = self._prior(prior)
        coded: list[Picture] = []
        entries: list[Entry] = []
        pixels_so_far = codes_so_far = 0
        for name, pixels in pictures:
            height, width = pixels.shape[:2]
            if name:
                check_name(name)
            check_size(height, width)
            pixels_so_far += height * width
            codes_so_far += math.prod(self.codec.shape(height, width))
            check_total(len(coded) + 1, pixels_so_far)
            check_codes(codes_so_far)
            codes = tiles.encode(self._runner("codec_encode"), pixels, self.geometry)
            coded.append(Picture(codes, height, width, name))
            entries.append(Entry(name, height, width, psnr(pixels, self._pixels(coded[-1]))))
        written = write_file(coded, self.codec, chosen)
        self._prove(written.data, coded, chosen)
        return Compressed(written.data, tuple(entries), written.code_bits)

    def decompress(self, data: bytes) -> Iterator[Restored]:
        """The pictures of a file, one after the other; all codes are read before the first.

        Raises IntegrityError (damaged, another codec), EnvironmentMissing (the fusion prior
        computes other numbers here).
        """
        pictures = read_file(data, self.codec, self._prior(describe(data).prior))
        return (Restored(picture.name, self._pixels(picture)) for picture in pictures)

    def _prove(self, data: bytes, coded: list[Picture], prior: Prior) -> None:
        again = read_file(data, self.codec, prior)
        for wanted, found in zip(coded, again, strict=True):
            same = (wanted.height, wanted.width, wanted.name) == (
                found.height,
                found.width,
                found.name,
            )
            if not same or not np.array_equal(wanted.codes, found.codes):
                raise IntegrityError(
                    "the file does not give back the codes that went in, so it was not written",
                    hint="--prior static does without the model as prior; please report this",
                )

    def _pixels(self, picture: Picture) -> Pixels:
        shape = (picture.height, picture.width)
        return tiles.decode(self._runner("codec_decode"), picture.codes, shape, self.geometry)

    def _prior(self, name: PriorName) -> Prior:
        if name == "raw":
            return RawPrior(self.codec)
        if name == "static":
            return StaticPrior(self.codec, static_table(self._rate, self.codec.planes))
        return FusionPrior(self.codec, self._runner("code_prior"))

    def _runner(self, name: str) -> Runner:
        if name not in self._runners:
            self._runners[name] = self._open(name)
        return self._runners[name]


def psnr(wanted: Pixels, found: Pixels) -> float:
    """Peak signal-to-noise ratio in dB of uint8 pictures of one shape; infinite when equal."""
    error = sum(
        float(np.square(a.astype(np.float32) - b.astype(np.float32)).sum(dtype=np.float64))
        for a, b in zip(wanted, found, strict=True)
    )
    return 10 * math.log10(255**2 * wanted.size / error) if error else math.inf
