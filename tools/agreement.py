"""Do the sampler graphs of a bundle draw what PyTorch draws? Seeds, operators, engines.

    python tools/agreement.py BUNDLE --run RUN [--seeds 100] [--batch 1] [--only joint]

Every sampler graph in fp32 runs in ONNX Runtime and in PyTorch on the same inputs and noise: those
of `mmprod parity run`, ids of every kind at random, which leave a model less sure than real ones.
A seed agrees when every code and token of the call is the same. Operators are counted through the
bodies of loops; engines are those that the bundle holds. Exit 5 when anything differs, or one of
these graphs (`--only` names fewer) is not in the bundle.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from mmprod.bundle import Bundle, open_bundle
from mmprod.checkpoint.run import open_run
from mmprod.cli.source import torch_runners
from mmprod.errors import ConfigError
from mmprod.export.graph_file import check_operators
from mmprod.export.value_types import walk
from mmprod.graphs.runner import Array, Runner
from mmprod.graphs.spec import GraphSpec
from mmprod.parity.cases import generated_cases
from mmprod.runners.ort import OrtRunner
from tools.command import explained, positive

ID_ROLES = ("codes", "tokens")
PRECISION = "fp32"
DIFFERS = 5
"""exit code"""


@dataclass(frozen=True)
class Agreement:
    """Over all seeds of a graph: seeds, those in which every id is the same, ids, equal ids."""

    seeds: int
    whole: int
    ids: int
    equal: int


def agreement(
    spec: GraphSpec, ours: Runner, reference: Runner, seeds: int, batch: int
) -> Agreement:
    """Both runners on the generated cases of a graph."""
    names = [tensor.name for tensor in spec.outputs if tensor.role in ID_ROLES]
    whole = ids = equal = count = 0
    for case in generated_cases(spec, (batch,), seeds):
        same = _same(names, ours(case.inputs), reference(case.inputs))
        count += 1
        whole += bool(same.all())
        ids += same.size
        equal += int(same.sum())
    return Agreement(count, whole, ids, equal)


def operators(path: Path, spec: GraphSpec) -> Counter[str]:
    """Operators of a graph. Raises ConfigError for one that not every backend computes alike."""
    model = onnx.load(path, load_external_data=False)
    check_operators(model, spec)
    return Counter(node.op_type for node, _ in walk(model.graph))


def engines(bundle: Bundle, spec: GraphSpec) -> dict[str, list[str]]:
    """Precisions of the engines by target."""
    found: dict[str, list[str]] = {}
    for artefact in bundle.artefacts(role="engine", graph=spec.name):
        found.setdefault(artefact.meta["target"], []).append(artefact.precision)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--run", type=Path, required=True, help="the run it was exported from")
    parser.add_argument("--seeds", type=positive, default=100)
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--only", action="append", help="a sampler graph; repeatable; default: all")
    return explained(lambda: _compare(parser.parse_args(arguments)))


def _compare(given: argparse.Namespace) -> int:
    bundle = open_bundle(given.bundle)
    reference = torch_runners(open_run(given.run))
    samplers = [name for name, spec in bundle.specs.items() if spec.loop_steps]
    if strange := set(given.only or ()) - set(samplers):
        raise ConfigError(f"no sampler graph {min(strange)}", hint=f"there are {samplers}")
    differs = False
    for spec in (bundle.specs[name] for name in given.only or samplers):
        graphs = bundle.artefacts(role="onnx", graph=spec.name, precision=PRECISION)
        if not graphs:
            print(f"{spec.name:14} not in this bundle in {PRECISION}")
            differs = True
            continue
        path = bundle.path(graphs[0])
        with (
            closing(OrtRunner(spec, path, precision=PRECISION)) as ours,
            closing(reference(spec.name)) as theirs,
        ):
            found = agreement(spec, ours, theirs, given.seeds, given.batch)
        kinds = operators(path, spec)
        built = ", ".join(f"{t} {'+'.join(p)}" for t, p in sorted(engines(bundle, spec).items()))
        differs |= found.equal < found.ids
        print(
            f"{spec.name:14} seeds that agree: {found.whole} of {found.seeds}, "
            f"ids {found.equal} of {found.ids} ({found.equal / found.ids:.4%})\n"
            f"{'':14} {sum(kinds.values())} nodes of {len(kinds)} kinds, all allowed: "
            f"{', '.join(sorted(kinds))}\n"
            f"{'':14} engines: {built or 'none'}",
            flush=True,
        )
    return DIFFERS if differs else 0


def _same(
    names: list[str], ours: Mapping[str, Array], theirs: Mapping[str, Array]
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.concatenate([(ours[name] == theirs[name]).ravel() for name in names])


if __name__ == "__main__":
    sys.exit(main())
