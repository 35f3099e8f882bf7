"""What is read from a bundle: verdicts of exactly these files, engines that lie there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmprod.bundle import Bundle, open_bundle
from mmprod.deploying.facts import Facts, read_facts
from mmprod.manifest import sha256_file
from mmprod.parity.standing import standing_rows
from tests.deploying.bundles import NODES, small_bundle


def _with_engine(root: Path) -> Bundle:
    bundle = small_bundle(root)
    path = root / "engines" / "rtx-sm89" / "codec_decode.fp16.plan"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"plan")
    artefact = bundle.add(path, role="engine", graph="codec_decode", precision="fp16")
    record: dict[str, Any] = {
        "graph": "codec_decode", "precision": "fp16", "flavour": "rtx", "version": "1.7.1.116",
        "target": "sm89", "path": artefact.path, "sha256": artefact.sha256, "state": "built",
        "bytes": 4, "seconds": 1.0, "kernels": 1, "fused_attention": 0,
        "memory": {"weights": 10, "activation": 5},
    }  # fmt: skip
    bundle.put_summary("engines", [record, {**record, "path": "engines/gone.plan"}])
    parity = bundle.summaries["parity"]
    graph = bundle.artefacts(role="onnx", graph="codec_decode")[0]
    row = {
        "leg": "torch-engine",
        "graph": "codec_decode",
        "precision": "fp16",
        "target": "rtx-sm89",
    }
    seal = {artefact.path: artefact.sha256, graph.path: graph.sha256}
    parity["rows"].append({**row, "status": "fail", "reason": "harmed", "sha256": seal})
    bundle.put_summary("parity", parity)
    bundle.save()
    return open_bundle(root)


def _facts(bundle: Bundle) -> Facts:
    return read_facts(bundle, standing_rows(bundle))


def test_graphs_engines_and_verdicts(tmp_path: Path) -> None:
    found = _facts(_with_engine(tmp_path / "bundle"))
    assert [graph.graph for graph in found.of_precision("fp32")] == [
        name for name in found.specs if name in NODES
    ]
    # The engine's failure is not the graph's.
    assert {graph.parity for graph in found.graphs} == {"pass"}
    (engine,) = found.engines
    assert (engine.parity, engine.bytes, engine.target) == ("fail", 4, "sm89")
    assert found.digest == sha256_file(tmp_path / "bundle" / "bundle.json")
    assert found.tokenizer and found.tokenizer[0] == "tokenizer.json" and not found.signed


def test_the_row_that_the_server_asks_counts(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    parity = bundle.summaries["parity"]
    parity["rows"] += [{**row, "status": "fail"} for row in parity["rows"]]
    parity["rows"][0]["status"] = "fail"
    parity["rows"][len(NODES)]["status"] = "pass"
    bundle.put_summary("parity", parity)
    found = {graph.graph: graph.parity for graph in _facts(bundle).graphs}
    assert found == {name: "fail" if i == 0 else "pass" for i, name in enumerate(NODES)}


def test_a_verdict_of_other_content_counts_for_nothing(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    parity = bundle.summaries["parity"]
    for row in parity["rows"]:
        row["sha256"] = dict.fromkeys(row["sha256"], "0" * 64)
    bundle.put_summary("parity", parity)
    assert {graph.parity for graph in _facts(bundle).graphs} == {""}
