"""A run -> a bundle: every graph of the catalog, in every precision asked for, with its reference.

Parts are traced once, in fp32 (the slow step, spread over the cores); casting, linking and writing
them takes a second or two.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from torch import nn

import mmprod
from mmprod.bundle import Bundle, Place, create_bundle
from mmprod.bundle.sbom import SOFTWARE, loaded_software
from mmprod.checkpoint.identity import codec_facts
from mmprod.checkpoint.models import Models
from mmprod.checkpoint.run import Run
from mmprod.errors import ConfigError
from mmprod.export.calibrate import Measured, calibrate
from mmprod.export.computed_types import precision_of
from mmprod.export.graph import assemble, parts_of
from mmprod.export.graph_file import save_graph
from mmprod.export.onnx_export import Part
from mmprod.export.precision import CALIBRATED, MIXED, check_precision_name
from mmprod.export.reference import BATCHES, reference_inputs, write_reference
from mmprod.export.workers import export_parts, process_count
from mmprod.graphs.codec_facts import FILE, CodecFacts
from mmprod.graphs.modules import build_module
from mmprod.graphs.runner import Array
from mmprod.graphs.spec import GraphSpec
from mmprod.runners.torch import TorchRunner

logger = logging.getLogger(__name__)

CALIBRATION = 16
"""samples to calibrate on, taken behind those of the references"""


@dataclass(frozen=True)
class ExportEvent:
    """One thing done: a part traced, a graph written in one precision, a reference stored.

    `done` of `total` counts within the stage.
    """

    stage: Literal["trace", "write", "reference"]
    name: str
    done: int
    total: int
    seconds: float


OnEvent = Callable[[ExportEvent], None]


def export_run(
    run: Run,
    models: Models,
    out: Path | Place,
    *,
    precisions: tuple[str, ...] = ("fp32", "fp16"),
    samples: Mapping[str, Array],
    on_event: OnEvent | None = None,
) -> Bundle:
    """Export all graphs of a run into a new bundle at `out`: a path that must be empty or not
    exist, or a `Place`, which can replace a bundle. Nothing is seen there before all is written.

    samples: real `pixels` (n, H, W, 3) uint8 and `tokens` (n, L) int32 of pictures and captions
    that belong together, for the references; n >= 4 uses no sample twice. on_event may be called
    from other threads, one call at a time. Raises ConfigError (precision, folder, a model that
    needs an operator backends disagree on), NumericsError (a weight beyond the precision's range).
    """
    if not precisions:
        raise ConfigError("no precision to export was given", hint="--precision fp32,fp16")
    for precision in precisions:
        check_precision_name(precision)
    place = out if isinstance(out, Place) else Place(out)
    with place.staged() as folder:
        bundle = create_bundle(
            folder,
            name=run.name,
            dims=run.dims,
            sampler=run.config.sampler,
            provenance={**run.provenance(), "export": _versions()},
        )
        tell = on_event or (lambda event: None)
        _fill(bundle, run, models, tuple(dict.fromkeys(precisions)), samples, tell)
    bundle.root = place.root
    return bundle


def _fill(
    bundle: Bundle,
    run: Run,
    models: Models,
    precisions: tuple[str, ...],
    samples: Mapping[str, Array],
    tell: OnEvent,
) -> None:
    """Write all files of the bundle and save it."""
    modules = {
        name: build_module(
            name,
            codec=models.codec,
            fusion=models.fusion,
            dims=run.dims,
            sampler=run.config.sampler,
        )
        for name in bundle.specs
    }
    exported = _trace(bundle.specs, modules, models, tell)
    real = _with_codes(bundle, modules, samples)
    ids = {"codes": bundle.dims.codebook_size, "tokens": bundle.dims.vocabulary}

    def calibration(spec: GraphSpec) -> dict[str, Array]:
        return reference_inputs(spec, CALIBRATION, real, ids)

    _write_graphs(bundle, modules, exported, precisions, calibration, tell)
    _write_references(bundle, modules, real, ids, tell)
    _copy(bundle, run.tokenizer_path, "tokenizer.json", "tokenizer")
    _copy(bundle, run.config_path, "config.toml", "config")
    add_codec_facts(bundle, codec_facts(models.codec, run.config.codec, run.dims))
    bundle.provenance[SOFTWARE] = loaded_software()  # now that all of it was used
    bundle.save()


def _trace(
    specs: Mapping[str, GraphSpec], modules: Mapping[str, nn.Module], models: Models, tell: OnEvent
) -> dict[str, onnx.ModelProto]:
    """The fp32 graphs of all parts; samplers that share a part share its graph."""
    alike: dict[Hashable, list[Part]] = {}
    for part in (part for spec in specs.values() for part in parts_of(spec, modules[spec.name])):
        alike.setdefault((type(part.module), part.inputs, part.outputs), []).append(part)
    parts = sorted(reversed([same[0] for same in alike.values()]), key=_is_light)
    tensors = [*models.codec.state_dict().values(), *models.fusion.state_dict().values()]
    weights = sum(tensor.nbytes for tensor in tensors)
    count: Counter[str] = Counter()

    def done(name: str, seconds: float) -> None:
        count["done"] += 1
        logger.debug("traced %s in %.1f s", name, seconds)
        tell(ExportEvent("trace", name, count["done"], len(parts), seconds))

    traced = export_parts(parts, process_count(weights), done)
    return {part.name: traced[same[0].name] for same in alike.values() for part in same}


def _is_light(part: Part) -> bool:
    """Whether a part can wait: the whole fusion model, alone or in a sampler's step, cannot."""
    return not part.name.endswith((".body", "fusion_step", "code_prior"))


def _write_graphs(
    bundle: Bundle,
    modules: Mapping[str, nn.Module],
    exported: Mapping[str, onnx.ModelProto],
    precisions: tuple[str, ...],
    calibration: Callable[[GraphSpec], dict[str, Array]],
    tell: OnEvent,
) -> None:
    """All graphs in all precisions. `calibration`: inputs of a graph that set its ranges."""
    found: dict[str, dict[str, Measured]] = {}
    jobs = [(spec, precision) for spec in bundle.specs.values() for precision in precisions]
    for index, (spec, precision) in enumerate(jobs, start=1):
        start = time.perf_counter()
        if precision in CALIBRATED and spec.name not in found:
            found[spec.name] = calibrate(
                spec,
                modules[spec.name],
                exported,
                [calibration(spec)],
                errors=MIXED in precisions,
            )
        model = assemble(spec, modules[spec.name], exported, precision, found.get(spec.name))
        meta = {
            "precision": precision_of(model),
            "opset": model.opset_import[0].version,
            "nodes": len(model.graph.node),
        }
        stem = f"{spec.name}.{precision}"
        for path in save_graph(model, bundle.root / "onnx" / f"{stem}.onnx"):
            role = "onnx" if path.suffix == ".onnx" else "onnx-data"
            bundle.add(path, role=role, graph=spec.name, precision=precision, meta=meta)
        tell(ExportEvent("write", stem, index, len(jobs), time.perf_counter() - start))


def _with_codes(
    bundle: Bundle, modules: Mapping[str, nn.Module], samples: Mapping[str, Array]
) -> dict[str, Array]:
    """Real samples and the codes of real pixels."""
    real = {role: values[: sum(BATCHES) + CALIBRATION] for role, values in samples.items()}
    if "pixels" in real and "codes" not in real:
        encode = TorchRunner(bundle.specs["codec_encode"], modules["codec_encode"])
        pixels = [real["pixels"][k : k + 1] for k in range(len(real["pixels"]))]
        real["codes"] = np.concatenate([encode({"pixels": one})["codes"] for one in pixels])
    return real


def _write_references(
    bundle: Bundle,
    modules: Mapping[str, nn.Module],
    samples: Mapping[str, Array],
    ids: Mapping[str, int],
    tell: OnEvent,
) -> None:
    """Reference inputs and outputs of all graphs."""
    specs = bundle.specs
    real = {role: values[: sum(BATCHES)] for role, values in samples.items()}
    for index, spec in enumerate(specs.values(), start=1):
        start = time.perf_counter()
        path = bundle.root / "reference" / f"{spec.name}.npz"
        write_reference(path, spec, TorchRunner(spec, modules[spec.name]), real, ids)
        bundle.add(path, role="reference", graph=spec.name)
        tell(ExportEvent("reference", spec.name, index, len(specs), time.perf_counter() - start))


def add_codec_facts(bundle: Bundle, facts: CodecFacts) -> None:
    """What compressed files need of the codec beside its graphs."""
    path = bundle.root / FILE
    path.write_bytes(facts.to_bytes())
    bundle.add(path, role="codec")


def _copy(bundle: Bundle, source: Path, name: str, role: str) -> None:
    shutil.copyfile(source, bundle.root / name)
    bundle.add(bundle.root / name, role=role)


def _versions() -> dict[str, str]:
    return {
        "mmprod": mmprod.__version__,
        **{name: version(name) for name in ("torch", "onnx", "onnxscript")},
    }
