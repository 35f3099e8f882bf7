"""An earlier bench beside a later one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mmprod.bench.compare import compare_reports, read_report
from mmprod.errors import ConfigError, IntegrityError

MACHINE = {"system": "Linux x", "processor": "P", "cores": 2, "flags": ["avx2"]}


def row(batch: int, p50: float | None, **changes: Any) -> dict[str, Any]:
    timing = None if p50 is None else {"p50_ms": p50}
    return {
        "graph": "joint",
        "subject": "onnxruntime",
        "precision": "fp32",
        "target": "",
        "batch": batch,
        "status": "void" if p50 is None else "measured",
        "reason": "no parity pass on this file hash" if p50 is None else "",
        "graph_only": timing,
        "end_to_end": None,
        **changes,
    }


def report(*rows: dict[str, Any], **machine: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "machine": {**MACHINE, **machine},
        "settings": {"threads": 2},
        "rows": list(rows),
    }


@pytest.mark.parametrize(("after", "slower"), [(10.4, False), (10.6, True), (5.0, False)])
def test_only_growth_beyond_the_limit_is_a_regression(after: float, slower: bool) -> None:
    (change,) = compare_reports(report(row(1, 10.0)), report(row(1, after)), 0.05)
    assert change.regressed is slower
    assert change.growth == pytest.approx(after / 10 - 1)


def test_end_to_end_is_a_figure_of_its_own() -> None:
    old = report(row(1, 10.0, end_to_end={"p50_ms": 20.0}))
    new = report(row(1, 10.0, end_to_end={"p50_ms": 30.0}))
    found = {c.figure: c.regressed for c in compare_reports(old, new, 0.05)}
    assert found == {"graph": False, "end to end": True}


@pytest.mark.parametrize("later", [[row(1, 9.0)], [row(1, 9.0), row(4, None)]])
def test_a_figure_that_vanished_is_no_pass(later: list[dict[str, Any]]) -> None:
    changes = compare_reports(report(row(1, 10.0), row(4, 30.0)), report(*later), 0.05)
    assert [change.regressed for change in changes] == [False, True]
    assert changes[1].reason


@pytest.mark.parametrize("key", ["processor", "cores", "flags", "system"])
def test_two_machines_are_refused_with_both_names(key: str) -> None:
    old, new = report(row(1, 10.0)), report(row(1, 10.0), **{key: "other"})
    with pytest.raises(ConfigError, match=key) as caught:
        compare_reports(old, new, 0.05)
    assert caught.value.message.count("2 threads") == 2
    assert len(compare_reports(old, new, 0.05, other_machine=True)) == 1


def test_other_threads_are_refused() -> None:
    old, new = report(row(1, 10.0)), report(row(1, 10.0))
    new["settings"] = {"threads": 1}
    with pytest.raises(ConfigError, match="threads"):
        compare_reports(old, new, 0.05)


def test_reports_without_a_common_row_are_refused() -> None:
    with pytest.raises(ConfigError, match="in common"):
        compare_reports(report(row(1, 10.0)), report(row(4, 10.0)), 0.05)
    with pytest.raises(ConfigError, match="no figures"):
        compare_reports(report(row(1, None)), report(row(1, 10.0)), 0.05)


def _without(*path: str) -> dict[str, Any]:
    data: Any = report(row(1, 10.0))
    inner = copy.deepcopy(data)
    place = inner
    for step in path[:-1]:
        place = place[step] if step != "0" else place[0]
    del place[path[-1]]
    return dict(inner)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        json.dumps({**report(row(1, 1.0)), "format": 2}),
        json.dumps(report(row(1, 0.0))),
        json.dumps(report(row(1, 1.0, graph_only={}))),
        json.dumps(_without("rows")),
        json.dumps(_without("rows", "0", "batch")),
        json.dumps(_without("settings", "threads")),
        json.dumps(_without("machine")),
    ],
)
def test_what_is_no_report_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(IntegrityError) as caught:
        read_report(path)
    assert str(path) in caught.value.message
