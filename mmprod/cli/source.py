"""A trained model to use, wherever it is: a run (PyTorch) or a bundle (ONNX Runtime, no torch).

What a command does not ask for is not loaded: a run without a fusion stage has a codec to use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmprod.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    from mmprod.bundle import Bundle
    from mmprod.checkpoint import Run
    from mmprod.config.schema import Config, Dims
    from mmprod.data.tokenizer import Tokenizer
    from mmprod.graphs.codec_facts import CodecFacts
    from mmprod.graphs.runner import Runner
    from mmprod.graphs.spec import GraphSpec

Backend = Literal["torch", "ort"]
Kind = Literal["run", "bundle"]


@dataclass(frozen=True)
class Source:
    """An opened run or bundle: what its graphs are and how to get the rest: a runner of a graph,
    the tokenizer, the facts of the codec.
    """

    kind: Kind
    name: str
    backend: Backend
    dims: Dims
    specs: dict[str, GraphSpec]
    runner: Callable[[str], Runner]
    load_tokenizer: Callable[[], Tokenizer]
    codec_facts: Callable[[], CodecFacts]
    provenance: Mapping[str, Any]
    """what a bundle says of the run it came from, of a run the same"""
    languages: Callable[[], tuple[str, ...]]
    """languages of the captions that it was trained on"""

    @property
    def tokenizer(self) -> Tokenizer:
        return self.load_tokenizer()


def open_source(
    path: Path,
    backend: Backend | None,
    precision: str = "fp32",
    sampler: Mapping[str, float] | None = None,
) -> Source:
    """Open a run or bundle, all hashes checked.

    `backend` None: torch for a run, ONNX Runtime for a bundle; nothing else is possible, and is
    refused. `precision`: of a bundle's graphs; a run has fp32 only. `sampler`: keys of the
    configuration's section that differ; a bundle has its samplers built in.
    """
    kind = kind_of(path)
    natural: Backend = "torch" if kind == "run" else "ort"
    if backend not in (None, natural):
        hint = {
            "run": f"export it first: mmprod export {path}",
            "bundle": "give the run it was exported from, or leave --backend out",
        }[kind]
        raise ConfigError(f"a {kind} runs on {natural}, not on {backend}", hint=hint)
    if kind == "run" and precision != "fp32":
        raise ConfigError(
            f"a run computes in fp32, not in {precision}",
            hint=f"only a bundle has graphs in other precisions: mmprod export {path}",
        )
    if kind == "bundle":
        from mmprod.bundle import open_bundle

        if sampler:
            raise ConfigError(
                f"a bundle has its samplers built in: {', '.join(sampler)} cannot be changed",
                hint="give the run it was exported from, or leave the option out",
            )

        return _of_bundle(open_bundle(path), precision)
    from mmprod.checkpoint import open_run

    return _of_run(resampled(open_run(path), sampler or {}))


def kind_of(path: Path) -> Kind:
    """What the folder is. Raises ConfigError when it is neither."""
    if (path / "bundle.json").is_file():
        return "bundle"
    if (path / "run.json").is_file():
        return "run"
    what = "holds neither a finished run nor a bundle" if path.is_dir() else "does not exist"
    raise ConfigError(
        f"{path} {what}",
        hint="`mmprod train` makes a run, `mmprod export RUN` a bundle, `mmprod demo` both",
    )


def torch_runners(run: Run) -> Callable[[str], Runner]:
    """Runners of a run's graphs, PyTorch on the averaged weights in fp32.

    Each model is loaded when first needed: the codec's graphs need no fusion model.
    """
    from mmprod.checkpoint.models import load_codec, load_models
    from mmprod.graphs.catalog import build_catalog
    from mmprod.graphs.modules import CodecDecode, CodecEncode, build_module
    from mmprod.runners.torch import TorchRunner

    codec, both = (
        functools.cache(lambda: load_codec(run)),
        functools.cache(lambda: load_models(run)),
    )
    specs = build_catalog(run.dims, run.config.sampler)

    def runner(name: str) -> Runner:
        if name == "codec_encode":
            return TorchRunner(specs[name], CodecEncode(codec()))
        if name == "codec_decode":
            return TorchRunner(specs[name], CodecDecode(codec(), run.dims.grid))
        models = both()
        module = build_module(
            name,
            codec=models.codec,
            fusion=models.fusion,
            dims=run.dims,
            sampler=run.config.sampler,
        )
        return TorchRunner(specs[name], module)

    return runner


def resampled(run: Run, changes: Mapping[str, float]) -> Run:
    """The run with other settings of its samplers. Raises ConfigError for impossible ones."""
    if not changes:
        return run
    from pydantic import ValidationError

    values = run.config.model_dump()
    values["sampler"] |= changes
    try:
        config = type(run.config).model_validate(values)
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(str(part) for part in detail["loc"]) or "sampler"
        raise ConfigError(
            f"{where}: {detail['msg']}", hint=f"the run has {run.config.sampler!r}"
        ) from error
    return replace(run, config=config)


def _of_run(run: Run) -> Source:
    from mmprod.graphs.catalog import build_catalog

    def facts() -> CodecFacts:
        from mmprod.checkpoint.identity import codec_facts
        from mmprod.checkpoint.models import load_codec

        return codec_facts(load_codec(run), run.config.codec, run.dims)

    return Source(
        kind="run",
        name=run.name,
        backend="torch",
        dims=run.dims,
        specs=build_catalog(run.dims, run.config.sampler),
        runner=torch_runners(run),
        load_tokenizer=lambda: _load_tokenizer(run.tokenizer_path),
        codec_facts=facts,
        provenance=run.provenance(),
        languages=lambda: run.config.data.languages,
    )


def _of_bundle(bundle: Bundle, precision: str) -> Source:
    def runner(name: str) -> Runner:
        from mmprod.bundle.assignment import resolve
        from mmprod.runners.ort import OrtRunner

        kind = resolve(bundle, name, precision)
        graphs = bundle.artefacts(role="onnx", graph=name, precision=kind)
        if not graphs:
            raise _lacking(bundle, name, kind)
        return OrtRunner(bundle.specs[name], bundle.path(graphs[0]), precision=kind)

    def facts() -> CodecFacts:
        from mmprod.graphs.codec_facts import CodecFacts

        return CodecFacts.load(_only_file(bundle, "codec"), bundle.dims.codebook_size)

    return Source(
        kind="bundle",
        name=bundle.name,
        backend="ort",
        dims=bundle.dims,
        specs=bundle.specs,
        runner=runner,
        load_tokenizer=lambda: _load_tokenizer(_only_file(bundle, "tokenizer")),
        codec_facts=facts,
        provenance=bundle.provenance,
        languages=lambda: _load_config(_only_file(bundle, "config")).data.languages,
    )


def _lacking(bundle: Bundle, name: str, precision: str) -> ConfigError:
    """Why there is no such graph: another precision was exported, or a version before it did."""
    found = sorted({a.precision for a in bundle.artefacts(role="onnx", graph=name)})
    if found:
        hint = f"it holds {', '.join(found)}"
        return ConfigError(f"{bundle.root} has no {name} in {precision}", hint=hint)
    held = ", ".join(sorted({a.graph for a in bundle.artefacts(role="onnx")}))
    return ConfigError(
        f"{bundle.root} has no graph {name}, it holds {held}",
        hint=f"export the run again: mmprod export RUN --out {bundle.root} --replace",
    )


def _only_file(bundle: Bundle, role: str) -> Path:
    """The bundle's file of this role. Raises IntegrityError when it has none."""
    found = bundle.artefacts(role=role)
    if not found:
        raise IntegrityError(f"{bundle.root} has no {role}", hint="export the run again")
    return bundle.path(found[0])


def _load_config(path: Path) -> Config:
    from mmprod.config.load import load_config

    return load_config(str(path))


def _load_tokenizer(path: Path) -> Tokenizer:
    from mmprod.data.tokenizer import Tokenizer

    return Tokenizer.load(path)
