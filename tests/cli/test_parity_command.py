"""`mmprod parity run` and `rerun`: what they leave, what they refuse, how they end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mmprod.bundle import Bundle, open_bundle
from mmprod.cli.rerun_views import require_nothing_lost
from mmprod.errors import EnvironmentMissing
from mmprod.parity import candidates
from mmprod.parity.report import ParityReport
from mmprod.parity.rerun import changes, last_request
from mmprod.parity.run import PAGE, STORED, run_parity
from mmprod.parity.worker import Workers
from mmprod.runners.cuda import Probe
from tests.parity import fake_device
from tests.parity.conftest import bundle as bundle
from tests.parity.test_rerun import add_noise
from tests.parity.test_worker import add_engine
from tests.parity.toy import numpy_reference

from .conftest import Mmprod


def test_run_then_rerun_after_a_graph_was_damaged(bundle: Bundle, mmprod: Mmprod) -> None:
    refused = mmprod("parity", "rerun", bundle.root)
    assert refused.code == 2 and "no parity report" in refused.err
    first = mmprod("parity", "run", bundle.root)
    assert first.code == 0, first.err
    assert "page: " in first.out and "Parity of toy: passed" in (bundle.root / PAGE).read_text()

    again = mmprod("parity", "rerun", bundle.root, "--json")
    assert again.code == 0, again.err
    assert {change["change"] for change in again.json()["changes"]} == {"same"}

    add_noise(open_bundle(bundle.root))
    failed = mmprod("parity", "rerun", bundle.root)
    assert failed.code == 5 and "fails anew: torch-ort embed_text fp32" in failed.err
    assert "1 new failure" in failed.out
    page = (bundle.root / PAGE).read_text()
    assert "Parity of toy: FAILED" in page and "Where embed_text differs" in page
    open_bundle(bundle.root)


def test_rerun_compares_with_nothing_else_than_before(
    bundle: Bundle, mmprod: Mmprod, tmp_path: Path
) -> None:
    run_parity(bundle)
    stored = mmprod("parity", "rerun", bundle.root, "--against", tmp_path)
    assert stored.code == 2 and "not with a run" in stored.err
    run_parity(bundle, reference=numpy_reference, seeds=1)
    live = mmprod("parity", "rerun", bundle.root)
    assert live.code == 2 and "made live with numpy" in live.err


def test_rerun_is_not_ok_when_what_passed_is_not_run(
    bundle: Bundle, mmprod: Mmprod, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mmprod("parity", "run", bundle.root).code == 0
    request = last_request(open_bundle(bundle.root))

    def missing(*_: object) -> None:
        raise EnvironmentMissing("onnxruntime is not installed", hint="pip install it")

    monkeypatch.setattr(Workers, "open", missing)
    found = mmprod("parity", "rerun", bundle.root, "--json")
    assert found.code == 3 and not found.json()["ok"]
    assert "passed before, not run now: torch-ort codec_decode fp32" in found.err
    empty = ParityReport("toy", STORED, (), 0, ())
    with pytest.raises(EnvironmentMissing, match="the bundle has it no more"):
        require_nothing_lost(changes(request, empty))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_an_engine_that_hangs_fails_in_time_and_leaves_nothing(
    bundle: Bundle, mmprod: Mmprod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmprod.runners.cuda.find_device", lambda: Probe("sm89", "a device"))
    monkeypatch.setattr(candidates, "open_engine", fake_device.hang)
    add_engine(bundle)
    result = mmprod("parity", "run", bundle.root, "--timeout", 2)
    assert result.code == 5 and "torch-engine codec_decode fp32 rtx-sm89" in result.err
    assert "no answer within 2 s" in (bundle.root / "reports" / "parity.md").read_text()
    assert workers_of(os.getpid()) == []


def test_a_device_s_signed_report_is_accepted_where_it_arrives(
    bundle: Bundle, mmprod: Mmprod, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("mmprod.runners.cuda.find_device", lambda: Probe("sm89", "a device"))
    monkeypatch.setattr(candidates, "open_engine", fake_device.honest)
    add_engine(bundle)
    key, report = tmp_path / "device", tmp_path / "device.json"
    assert mmprod("bundle", "keygen", key).code == 0
    made = mmprod("parity", "selftest", bundle.root, "--output", report, "--key", key)
    assert made.code == 0, made.err
    trusted = ("--trusted", f"{key}.pub")
    found = mmprod("parity", "accept", report, bundle.root, *trusted)
    assert found.code == 0 and "a device (sm89), driver unknown" in found.out
    data = mmprod("parity", "accept", report, bundle.root, *trusted, "--json").json()
    assert data["ok"] and data["engines"] == ["engines/rtx-sm89/codec_decode.fp32.plan"]
    report.write_text(report.read_text().replace("a device", "another"))
    assert mmprod("parity", "accept", report, bundle.root, *trusted).code == 4


def workers_of(parent: int) -> list[str]:
    """The worker processes that a process has."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            about = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(about[1]) == parent and "mmprod.parity.worker_child" in command:
            found.append(folder.name)
    return found
