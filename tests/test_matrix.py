"""The page of graphs, precisions and targets: no cell without a figure or a reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mmprod.bundle import Bundle, create_bundle
from mmprod.config.schema import Dims, SamplerConfig
from mmprod.engines.job import BuildJob, BuildResult
from mmprod.engines.pool import Limits
from mmprod.errors import ConfigError, MmprodError
from mmprod.parity.report import limits_sha256
from mmprod.runners.cuda import Probe
from tools import matrix

GRAPHS = ("embed_image", "embed_text")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Two graphs in fp32, int8 and fp8; embed_text failed parity in int8, fp8 has no verdict."""
    dims = Dims(16, 4, 32, 8, 64, 24)
    made = create_bundle(
        tmp_path / "bundle", name="test", dims=dims, sampler=SamplerConfig(), provenance={}
    )
    rows = []
    for graph in GRAPHS:
        for precision in ("fp32", "int8", "fp8"):
            path = made.root / f"onnx/{graph}.{precision}.onnx"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"graph " * 1000)
            artefact = made.add(path, role="onnx", graph=graph, precision=precision)
            failed = (graph, precision) == ("embed_text", "int8")
            rows.append(
                {
                    "leg": "torch-ort",
                    "graph": graph,
                    "precision": precision,
                    "target": "",
                    "status": "fail" if failed else "pass",
                    "reason": "cosine 0.9" if failed else "closest to its limit: cosine 1",
                    "sha256": {artefact.path: "0" if precision == "fp8" else artefact.sha256},
                }
            )
    summary = {"ok": False, "limits_sha256": limits_sha256(), "rows": rows}
    made.put_summary("parity", summary)
    made.save()
    return made


def building(
    jobs: Sequence[BuildJob], *, limits: Limits
) -> Iterator[tuple[BuildJob, BuildResult | MmprodError]]:
    """Plans of 2.5 MB; none of embed_image for sm120."""
    for job in jobs:
        if (job.graph, job.target) == ("embed_image", "sm120"):
            yield job, ConfigError(f"{job.label}: TensorRT cannot build this")
            continue
        Path(job.plan).write_bytes(bytes(2_500_000))
        found = {"in_engine": {"Int8": 3, "Float": 1}}
        yield job, BuildResult("1.7", 1.25, {}, found, {}, ())


def test_every_cell_is_a_figure_or_a_numbered_reason(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "run_jobs", building)
    graphs = [graph for graph in matrix.graphs_of(bundle) if graph.spec.name in GRAPHS]
    targets = ("sm86", "sm120")
    cells = matrix.build(bundle, graphs, targets)
    assert len(cells) == len(graphs) * len(targets) == 2 * 6 * 2
    assert all((cell.refusal == "") == (cell.bytes > 0) for cell in cells.values())
    page = matrix.render("# Head", graphs, cells, targets)
    lines = {tuple(line.strip("| ").split(" | ")[:2]): line for line in page.splitlines()}
    assert lines["embed_image", "int8"].endswith(
        "| 0.01 MB | pass | cosine 1 | Float 1, Int8 3 | 2.50 MB, 1.2 s | refused [5] |"
    )
    assert "| fail | cosine 0.9 | - | refused [" in lines["embed_text", "int8"]
    assert "| - | not run | not exported |" in lines["embed_text", "bf16"]
    assert "no verdict for this file" in lines["embed_text", "fp8"]
    notes = page.partition("## Notes")[2].partition("## Limits")[0]
    numbers = [line.partition(". ")[0] for line in notes.strip().splitlines()]
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    assert "fp8 engines cannot be built for sm86" in notes
    assert "TensorRT cannot build this" in notes
    assert "embed_text int8: parity fail: cosine 0.9" in notes
    assert set(page.replace("]", "[").split("[")[1::2]) == set(numbers)


def test_limits_of_every_precision_are_on_the_page() -> None:
    lines = list(matrix._limits())
    assert all(len(line) == 2 + len(matrix.PRECISIONS) for line in lines)
    plain = next(line for line in lines if line[:2] == ["pixels", "plain"])
    assert all("psnr" in text or "max_level" in text for text in plain[2:])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The targets that are built for, in order; nothing is really built."""
    targets: list[str] = []

    def counting(
        jobs: Sequence[BuildJob], *, limits: Limits
    ) -> Iterator[tuple[BuildJob, BuildResult | MmprodError]]:
        targets.extend(job.target for job in jobs)
        return building(jobs, limits=limits)

    monkeypatch.setattr(matrix, "run_jobs", counting)
    return targets


def test_an_interrupted_run_goes_on(bundle: Bundle, asked: list[str], tmp_path: Path) -> None:
    graphs = [graph for graph in matrix.graphs_of(bundle) if graph.spec.name == "embed_text"]
    known = tmp_path / "cells.jsonl"
    first = matrix.build(bundle, graphs, ("sm86",), known)
    seen = matrix.build(bundle, graphs, ("sm86", "sm89"), known, stop=True)
    assert seen["embed_text", "fp32", "sm89"].refusal == matrix.NOT_BUILT
    both = matrix.build(bundle, graphs, ("sm86", "sm89"), known)
    assert asked == ["sm86", "sm89"]
    assert both["embed_text", "fp32", "sm86"] == first["embed_text", "fp32", "sm86"]


def test_failures_and_other_versions_are_built_again(
    bundle: Bundle, asked: list[str], tmp_path: Path
) -> None:
    graphs = [
        graph
        for graph in matrix.graphs_of(bundle)
        if (graph.spec.name, graph.precision) == ("embed_image", "fp32")
    ]
    known = tmp_path / "cells.jsonl"
    for version in ("1.7", "1.7", "1.8", "1.7"):
        matrix.build(bundle, graphs, ("sm86", "sm120"), known, version=version)
        asked.append(version)
    assert asked == ["sm86", "sm120", "1.7", "sm120", "1.7", "sm86", "sm120", "1.8", "sm120", "1.7"]


@pytest.mark.parametrize(("target", "said"), [("", True), ("sm89", False)])
def test_the_head_speaks_of_the_device_of_this_machine(
    target: str, said: bool, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "find_device", lambda: Probe(target=target))
    head = matrix.head_of(bundle, ("sm86",), "1.7", 1.0)
    assert "No engine was run" in head
    assert ("no CUDA device" in head) == said
