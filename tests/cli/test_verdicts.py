"""What a device must have run, on devices that are made up, and `mmprod parity selftest`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmprod.bundle import Bundle, open_bundle
from mmprod.cli.verdicts import require_engines
from mmprod.errors import EnvironmentMissing, ParityFailed
from mmprod.manifest import FileEntry
from mmprod.parity import candidates
from mmprod.parity.report import ParityReport, Row, Status, Subject
from mmprod.runners.cuda import Probe
from tests.parity import fake_device
from tests.parity.conftest import bundle as bundle

from .conftest import ROOT, Mmprod

PLAN = (FileEntry("engines/x.plan", "0" * 64, 1),)


def engine(target: str, status: Status, files: tuple[FileEntry, ...] = PLAN) -> Row:
    subject = Subject("torch-engine", "codec_decode", "fp16", target, files)
    return Row(subject, status, f"{target} {status}", "what to do")


def require(monkeypatch: pytest.MonkeyPatch, device: Probe, *rows: Row) -> None:
    monkeypatch.setattr("mmprod.runners.cuda.find_device", lambda: device)
    require_engines(ParityReport("toy", "stored", (), 0, rows))


SM86 = Probe("sm86", "a device")


def test_engines_for_other_devices_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = engine("rtx-sm86", "pass"), engine("rtx-sm89", "not run")
    require(monkeypatch, SM86, *rows)
    with pytest.raises(EnvironmentMissing, match="1 of 1 engines for sm89 were not run"):
        require(monkeypatch, Probe("sm89", "another"), *rows)


def test_an_engine_that_was_not_built_is_not_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    require(monkeypatch, SM86, engine("rtx-sm86", "pass"), engine("rtx-sm86", "not run", ()))


@pytest.mark.parametrize("target", ["rtx-sm89", "rtx-sm8", "rtx-sm860"])
def test_one_engine_at_least_must_be_for_this_device(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EnvironmentMissing, match=f"no engine.*sm86.*{target}") as caught:
        require(monkeypatch, SM86, engine(target, "pass"))
    assert "--target sm86" in caught.value.hint


def test_any_failed_engine_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParityFailed, match="rtx-sm89"):
        require(monkeypatch, SM86, engine("rtx-sm86", "pass"), engine("rtx-sm89", "fail"))


def test_no_device_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentMissing, match="no CUDA device: no driver"):
        require(monkeypatch, Probe(reason="no driver"), engine("rtx-sm86", "not run"))


def add_engine(bundle: Bundle) -> None:
    path = bundle.root / "engines" / "rtx-sm86" / "embed_text.fp32.plan"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"plan")
    bundle.add(path, role="engine", graph="embed_text", precision="fp32")
    bundle.save()


def test_selftest_runs_the_engines_of_this_device(
    bundle: Bundle, mmprod: Mmprod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmprod.runners.cuda.find_device", lambda: SM86)
    monkeypatch.setattr(candidates, "open_engine", fake_device.honest)
    assert mmprod("parity", "selftest", bundle.root).code == 3, "no engine for this device"
    add_engine(open_bundle(bundle.root))
    result = mmprod("parity", "selftest", bundle.root, "--json")
    assert result.code == 0, result.err
    passed = [r for r in result.json()["rows"] if r["status"] == "pass"]
    assert [r["leg"] for r in passed].count("torch-engine") == 1 and len(passed) == 3


def test_selftest_without_torch_and_without_a_device_is_exit_3(bundle: Bundle) -> None:
    add_engine(bundle)
    code = (
        "import sys; sys.modules['torch'] = None; import mmprod.runners.cuda as cuda; "
        "cuda.find_device = lambda: cuda.Probe(reason='no driver'); "
        "from mmprod.cli.main import main; main(['parity', 'selftest', sys.argv[1]])"
    )
    command = [sys.executable, "-c", code, str(bundle.root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "no CUDA device: no driver" in done.stderr
    assert "2 pass" in done.stdout, "the graphs were compared all the same"
