"""Our side of `mmprod codec rate`: opened runs and bundles, their labels, the priors they can code
with, what a decoder takes. What can be refused is refused here, before anything is measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprod.bitstream.priors import PriorName
from mmprod.cli.source import Source, open_source
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    from mmprod.bundle import Bundle
    from mmprod.config.schema import CodecConfig

PRIORS: tuple[PriorName, ...] = ("raw", "static", "fusion")


@dataclass(frozen=True)
class Decoder:
    """What decoding needs: bytes of weights or libraries (None: not known), and what they are."""

    codec: str
    bytes: int | None
    what: str


@dataclass(frozen=True)
class About:
    """Which codec this is. `books` x `codes` ids of `dim` numbers, one of each book for a square of
    `factor` pixels; `quantizer`: empty where a bundle has no configuration.
    """

    path: str
    kind: str
    precision: str
    quantizer: str
    factor: int
    books: int
    codes: int
    dim: int

    def short(self) -> str:
        """Pixels per position, ids and quantizer: `f8 2x96 residual`, `f4 1024 spherical`."""
        books = f"{self.books}x" if self.books > 1 else ""
        return f"f{self.factor} {books}{self.codes} {self.quantizer}".rstrip()


@dataclass(frozen=True)
class Ours:
    """An opened codec under a label that no other one has."""

    label: str
    about: About
    source: Source
    priors: tuple[PriorName, ...]
    decoder: Decoder

    def as_dict(self) -> dict[str, Any]:
        return {"codec": self.label, **asdict(self.about), "priors": list(self.priors)}


def open_ours(paths: Sequence[Path], precision: str, wanted: Sequence[str]) -> list[Ours]:
    """Open runs and bundles; `wanted`: priors, all that each has if empty.

    Raises ConfigError for a folder given twice, a prior or precision that one of them lacks.
    """
    twice = [str(p) for p, n in Counter(path.resolve() for path in paths).items() if n > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is given twice", hint="name each run or bundle once")
    unknown = [name for name in wanted if name not in PRIORS]
    if unknown:
        raise ConfigError(
            f"there is no prior {', '.join(unknown)}", hint=f"choose from {', '.join(PRIORS)}"
        )
    sources = [open_source(path, None, precision) for path in paths]
    abouts = [_about(*pair, precision) for pair in zip(paths, sources, strict=True)]
    found = []
    for label, about, source in zip(labels(abouts), abouts, sources, strict=True):
        size_of, able = (_of_bundle if source.kind == "bundle" else _of_run)(about)
        priors = _chosen(about.path, wanted, able)
        count, what = size_of("fusion" in priors)
        found.append(Ours(label, about, source, priors, Decoder(label, count, what)))
    return found


def labels(codecs: Sequence[About]) -> list[str]:
    """A name for each: the short one, longer only where two would have the same."""
    forms: tuple[Callable[[About], str], ...] = (
        About.short,
        lambda a: f"{a.short()} D{a.dim}",
        lambda a: f"{a.short()} {Path(a.path).resolve().name}",
        lambda a: f"{a.short()} {a.kind} {Path(a.path).resolve().name}",
        lambda a: f"{a.short()} {a.path}",
    )
    found = [forms[0](codec) for codec in codecs]
    for form in forms[1:]:
        counts = Counter(found)
        found = [
            form(codec) if counts[label] > 1 else label
            for codec, label in zip(codecs, found, strict=True)
        ]
    return found


SizeOf = Callable[[bool], tuple[int, str]]
"""with the fusion prior or without -> bytes that a decoder takes, and what they are"""


def _of_bundle(about: About) -> tuple[SizeOf, Sequence[PriorName]]:
    from mmprod.bundle import open_bundle

    bundle, precision = open_bundle(Path(about.path)), about.precision
    for graph in ("codec_encode", "codec_decode"):
        if not bundle.artefacts(role="onnx", graph=graph, precision=precision):
            held = sorted({a.precision for a in bundle.artefacts(role="onnx", graph=graph)})
            raise ConfigError(
                f"{about.path} has no {graph} in {precision}",
                hint=f"it holds {', '.join(held)}" if held else "export the run again",
            )

    def size_of(fusion: bool) -> tuple[int, str]:
        graphs = ["codec_decode", *(["code_prior"] if fusion else [])]
        size = sum(_graph_bytes(bundle, graph, precision) for graph in graphs)
        return size, f"{' and '.join(graphs)} in {precision}, without ONNX Runtime"

    has_prior = bundle.artefacts(role="onnx", graph="code_prior", precision=precision)
    return size_of, PRIORS if has_prior else PRIORS[:-1]


def _graph_bytes(bundle: Bundle, graph: str, precision: str) -> int:
    """A graph's file and, if its weights lie beside it, theirs."""
    return sum(
        artefact.bytes
        for role in ("onnx", "onnx-data")
        for artefact in bundle.artefacts(role=role, graph=graph, precision=precision)
    )


def _of_run(about: About) -> tuple[SizeOf, Sequence[PriorName]]:
    from mmprod.checkpoint import open_run
    from mmprod.checkpoint.models import load_codec

    run = open_run(Path(about.path))
    codec = load_codec(run)
    values = sum(p.numel() for p in codec.decoder.parameters()) + codec.quantizer.table().numel()

    def size_of(fusion: bool) -> tuple[int, str]:
        if not fusion:
            return 4 * values, "decoder and codebook in fp32, without PyTorch"
        size = 4 * values + run.weights_path("fusion").stat().st_size
        return size, "decoder, codebook and fusion model in fp32, without PyTorch"

    return size_of, PRIORS if "fusion" in run.stages else PRIORS[:-1]


def _chosen(path: str, wanted: Sequence[str], able: Sequence[PriorName]) -> tuple[PriorName, ...]:
    """The wanted priors, all without a wish. Raises ConfigError for one that is not there."""
    if any(name not in able for name in wanted):
        raise ConfigError(
            f"{path} has no fusion model to code with", hint="leave fusion out of --priors"
        )
    return tuple(name for name in able if not wanted or name in wanted)


def _about(path: Path, source: Source, precision: str) -> About:
    dims, config = source.dims, _config(path, source)
    return About(
        path=str(path),
        kind=source.kind,
        precision=precision,
        quantizer=config.quantizer if config else "",
        factor=dims.image_size // dims.grid,
        books=dims.planes,
        codes=dims.codebook_size // dims.planes,
        dim=config.code_dim if config else dims.code_dim,
    )


def _config(path: Path, source: Source) -> CodecConfig | None:
    from mmprod.config.load import load_config

    if source.kind == "run":
        from mmprod.checkpoint import open_run

        return open_run(path).config.codec
    from mmprod.bundle import open_bundle

    bundle = open_bundle(path)
    files = bundle.artefacts(role="config")
    return load_config(str(bundle.path(files[0]))).codec if files else None
