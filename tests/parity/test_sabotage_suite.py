"""Every fault of the suite does something, and parity notices what has an effect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mmprod.bundle import Bundle
from mmprod.errors import ConfigError
from mmprod.parity.faults import SUITE, find_fault, inject
from mmprod.parity.run import run_parity
from mmprod.parity.sabotage import copy_graph
from mmprod.parity.trials import (
    Trial,
    caught_faults,
    hidden_faults,
    placed_faults,
    run_trials,
)
from tests.parity.exported import export_some
from tests.parity.toy import TOKENS, stored

FEW = ("cut_plan", "foreign_plan", "flipped_bit", "missing_file", "extra_file", "stale_data")


def test_the_suite_holds_at_least_25_faults_with_names_of_their_own() -> None:
    assert len(SUITE) >= 25
    assert len({fault.name for fault in SUITE}) == len(SUITE)
    assert {fault.kind for fault in SUITE} == {"numeric", "structural", "file"}


def test_all_that_apply_to_small_graphs_are_caught(bundle: Bundle) -> None:
    rows = run_trials(bundle)
    assert [row for row in rows if not row.ok] == []
    caught = caught_faults(rows)
    assert [name for name, found in caught.items() if not found] == []
    assert len(caught) >= 25
    by = {row.kind: row.caught_by for row in rows if row.verdict == "fail"}
    assert {by[name] for name in FEW} == {"hash"}
    assert by["wrong_opset"] == by["swap_names"] == by["other_graph"] == "interface"
    assert by["stale_data_listed"] == by["permute_batch"] == by["bgr"] == "limits"
    assert by["put_inf"] == "values" or by["put_nan"] == "values"


def test_a_fault_without_a_target_is_not_run(bundle: Bundle, tmp_path: Path) -> None:
    copy = copy_graph(bundle, "codec_decode", "fp32", tmp_path / "copy")
    with pytest.raises(ConfigError, match="has no such Softmax"):
        inject(copy, find_fault("clip_softmax"), "codec_decode")
    with pytest.raises(ConfigError, match="unknown fault 'burn'") as caught:
        find_fault("burn")
    assert "put_nan" in caught.value.hint


def test_equal_samples_cannot_be_told_apart_in_another_order(bundle: Bundle) -> None:
    path = bundle.root / "reference" / "codec_decode.npz"
    np.savez(path, **stored("codec_decode", batches=(1,)))  # type: ignore[arg-type]
    bundle.add(path, role="reference", graph="codec_decode")
    with pytest.raises(ConfigError, match="have the same pixels"):
        inject(bundle, find_fault("permute_batch"), "codec_decode")


def test_a_graph_that_takes_no_mask_id_has_none_to_get_wrong(bundle: Bundle) -> None:
    """Though its table may have a row for it."""
    path = bundle.root / "onnx" / "embed_text.fp32.onnx"
    model = onnx.load(path)
    table = next(w for w in model.graph.initializer if w.name == "table")
    table.CopyFrom(numpy_helper.from_array(np.vstack([TOKENS, TOKENS[:1]]), "table"))
    onnx.save(model, path)
    with pytest.raises(ConfigError, match="reads no mask id"):
        inject(bundle, find_fault("wrong_mask_id"), "embed_text")


def test_a_fault_that_is_noticed_nowhere_counts_as_missed() -> None:
    through = Trial("g", "fp32", "bgr", "-", "no effect", "", excused=True)
    absent = Trial("g", "fp32", "tf32", "-", "not run", "")
    assert through.ok and absent.ok
    assert caught_faults((through, absent)) == {"bgr": False}
    seen = Trial("h", "fp32", "bgr", "-", "fail", "", "limits")
    assert caught_faults((through, seen)) == {"bgr": True}
    let_through = Trial("i", "fp32", "bgr", "-", "pass", "")
    assert caught_faults((seen, let_through)) == {"bgr": False}


def test_what_may_be_noticed_nowhere() -> None:
    """A gentle fault in a reduced precision, and any without effect if graphs were left out."""

    def unnoticed(precision: str, fault: str, excused: bool = True) -> tuple[Trial, ...]:
        absent = Trial("f", precision, fault, "-", "not run", "")
        return absent, Trial("g", precision, fault, "-", "within limits", "", excused=excused)

    assert hidden_faults(unnoticed("fp16", "missing_cast")) == ("missing_cast",)
    assert hidden_faults(unnoticed("fp16", "missing_cast", excused=False)) == ()
    assert hidden_faults(unnoticed("fp32", "missing_cast")) == ()
    assert hidden_faults(unnoticed("fp16", "bgr")) == ()
    assert hidden_faults(unnoticed("fp32", "bgr"), every_graph=False) == ("bgr",)
    assert hidden_faults(unnoticed("fp32", "bgr", excused=False), every_graph=False) == ()
    seen = Trial("h", "fp32", "bgr", "-", "fail", "", "limits")
    assert hidden_faults((*unnoticed("fp32", "bgr"), seen), every_graph=False) == ()


def test_blocks_are_counted_where_explain_was_asked() -> None:
    right = Trial("g", "fp32", "bgr", "-", "fail", "", "limits", block="a", blamed="a")
    wrong = Trial("g", "fp32", "tf32", "-", "fail", "", "limits", block="a", blamed="b")
    unasked = Trial("g", "fp32", "cut_graph", "-", "fail", "", "hash")
    assert placed_faults((right, wrong, unasked)) == (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clean_exports_raise_no_alarm(seed: int, tmp_path: Path) -> None:
    """A sample of what tools/clean_exports.py does with all graphs and many seeds."""
    made = export_some(tmp_path / "b", ("codec_encode", "embed_text"), ("fp32", "fp16"), seed=seed)
    report = run_parity(made)
    assert not report.select(status="fail")
    assert report.count("pass") == 4
