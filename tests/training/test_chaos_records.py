"""Records of kills that a crash tore."""

from __future__ import annotations

import json

import pytest

from mmprod.training.chaos import kill_records


@pytest.mark.parametrize("torn", ["", '{"number": 1, "pl', "[]", "5"])
def test_a_torn_record_counts_by_its_name(tmp_path, torn):
    whole = {"number": 0, "place": "save", "signal": "SIGKILL", "rank": 1, "phase": "save"}
    (tmp_path / "kill-0000.json").write_text(json.dumps(whole))
    (tmp_path / "kill-0001.json").write_text(torn)
    records = kill_records(tmp_path)
    assert records[0] == whole
    assert records[1]["number"] == 1
    assert records[1]["signal"] == records[1]["place"] == "unknown"
