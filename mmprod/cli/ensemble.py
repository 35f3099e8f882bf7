"""Several runs as one source: the mean of their logits, sampled on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmprod.cli.source import Source, kind_of, open_source, resampled
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    from mmprod.checkpoint import Run
    from mmprod.graphs.runner import Runner


def together(
    source: Source, path: Path, others: Sequence[Path], sampler: Mapping[str, float]
) -> Source:
    """`source`, opened from `path`, drawing with the `others`; its own sampler counts for all.

    Raises ConfigError for a bundle, and for runs whose codes or tokens mean other things.
    """
    from mmprod.bench.host_loop import HostLoop, sampling_order
    from mmprod.checkpoint import open_run
    from mmprod.sampling import MeanOfSteps

    first = _member(path)
    for other in others:
        _check_alike(first, _member(other))
    members = [source, *(open_source(other, None) for other in others)]
    chosen = resampled(open_run(path), sampler).config.sampler

    def runner(name: str) -> Runner:
        if name not in ("text_to_image", "fusion_step"):
            raise ConfigError(
                "an ensemble draws pictures for captions, nothing else", hint="leave --ensemble out"
            )
        step = MeanOfSteps([member.runner("fusion_step") for member in members])
        if name == "fusion_step":
            return step
        parts = step, source.runner("codec_decode")
        return HostLoop(source.specs[name], parts, chosen, sampling_order(source.dims, chosen))

    return replace(source, runner=runner)


def _member(path: Path) -> Run:
    from mmprod.checkpoint import open_run

    if kind_of(path) == "bundle":
        raise ConfigError(
            f"--ensemble draws with runs, {path} is a bundle, whose sampler is one graph",
            hint="give the runs that the bundles were exported from",
        )
    return open_run(path)


def _check_alike(first: Run, other: Run) -> None:
    from mmprod.manifest import sha256_file

    for what, own, theirs in (
        ("tokenizer", first.tokenizer_path, other.tokenizer_path),
        ("codec", first.weights_path("codec"), other.weights_path("codec")),
    ):
        if sha256_file(own) != sha256_file(theirs):
            raise ConfigError(
                f"{other.root} has another {what} than {first.root}: their ids mean other things",
                hint="runs of one ensemble share both: mmprod distill makes such runs; or copy the "
                "run without its fusion folder, and train --model fusion there with another seed",
            )
    sizes = asdict(other.dims)
    for key, size in asdict(first.dims).items():
        if key != "embedding" and sizes[key] != size:
            raise ConfigError(
                f"{other.root} has {key} {sizes[key]}, {first.root} has {size}",
                hint="runs of one ensemble have pictures of one size and captions of one length",
            )
