"""The sink of results: what people see, what programs read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmprod.cli.output import Fields, Output, Table, Text, megabytes, shown


def test_views_are_for_people_and_data_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("Things", ("name", "size"), [("a", 1.23456), ("b", 2)])
    Output().result({"x": 1}, table, Fields("", {"key": "value"}), Text("last"))
    people = capsys.readouterr().out
    assert all(word in people for word in ("Things", "name", "1.235", "key", "value", "last"))
    Output(as_json=True).result({"x": 1}, table)
    assert json.loads(capsys.readouterr().out) == {"x": 1}


def test_json_knows_paths_and_numpy(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).result({"p": Path("a/b"), "n": np.float32(0.5), "i": np.int64(3)})
    assert json.loads(capsys.readouterr().out) == {"p": "a/b", "n": 0.5, "i": 3}


def test_json_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError, match="object is not JSON"):
        Output(as_json=True).result({"x": object()})


def test_markup_in_a_text_is_only_text(capsys: pytest.CaptureFixture[str]) -> None:
    Output().result({}, Table("", ("a",), [("[red]x[/red] :smile:",)]))
    assert "[red]x[/red] :smile:" in capsys.readouterr().out


def test_control_characters_never_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = "a\x1b[31mb\x07\rc"
    Output().result({}, Table("", ("a",), [(text,)]), Text(text))
    shown_text = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\r"} & set(shown_text)
    assert shown_text.count("\ufffd") == 6


def test_long_cells_are_not_cut_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    long = "word" * 40
    Output().result({}, Table("", ("a",), [(long,)]))
    assert "".join(capsys.readouterr().out.split()[2:]) == long


def test_quiet_keeps_results_and_drops_remarks(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(verbosity=-1)
    out.note("remark")
    out.result({}, Text("result"))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("result\n", "")


def test_sizes_and_paths_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [megabytes(n) for n in (12, 1500, 2_500_000, 7_000_000_000)] == [
        "12 B", "1.5 kB", "2.5 MB", "7.0 GB",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "a" / "b") == "a/b"
    assert shown(tmp_path.parent / "c") == str(tmp_path.parent / "c")
