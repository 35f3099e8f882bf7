"""`mmprod parity selftest`: what it writes, for whom, and what is left of the bundle."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmprod.bundle import Bundle, open_bundle
from mmprod.bundle.artefact import Artefact
from mmprod.bundle.keys import generate
from mmprod.bundle.signing import Signer, sign, sign_file, verify_file
from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError, ParityFailed
from mmprod.manifest import sha256_file
from mmprod.parity import candidates
from mmprod.parity.accept import accept
from mmprod.parity.run import ParityEvent
from mmprod.parity.selftest import place_name, run_selftest
from mmprod.runners.cuda import Probe
from tests.parity import fake_device
from tests.parity.test_worker import TARGET, add_engine
from tests.parity.toy import stored

SM89 = Probe("sm89", "NVIDIA RTX 4090", driver="570.86, CUDA 12.8")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up device whose engines answer rightly."""
    monkeypatch.setattr("mmprod.runners.cuda.find_device", lambda: SM89)
    monkeypatch.setattr(candidates, "open_engine", fake_device.honest)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    generate(tmp_path / "keys" / "device")
    return tmp_path / "keys" / "device"


def test_the_report_says_what_ran_and_is_signed(bundle: Bundle, device: None, key: Path) -> None:
    add_engine(bundle)
    before = sha256_file(bundle.root / "bundle.json")
    done = run_selftest(bundle, timeout_s=60, key=key)
    assert done.path.name == "selftest-sm89-NVIDIA-RTX-4090.json"
    data = json.loads(done.path.read_text())
    assert data["bundle_json_sha256"] == before and data["ok"]
    assert data["device"]["driver"] == "570.86, CUDA 12.8" and data["device"]["target"] == "sm89"
    assert data["machine"]["libraries"]["onnxruntime"]
    (engine,) = [row for row in data["parity"]["rows"] if row["target"] == TARGET and row["files"]]
    assert engine["status"] == "pass" and engine["backend"].startswith(fake_device.BACKEND)
    assert "no new privileges" in engine["backend"]
    assert done.signature
    assert verify_file(done.path, [key.with_name("device.pub")])[0].key
    listed = {a.path for a in open_bundle(bundle.root).artefacts(role="report")}
    assert {f"reports/{done.path.name}", f"reports/{done.path.name}.sig"} <= listed
    done.path.write_text(done.path.read_text().replace('"ok": true', '"ok": false', 1))
    with pytest.raises(IntegrityError):
        verify_file(done.path, [key.with_name("device.pub")])


def test_a_report_without_a_key_drops_the_old_signature(
    bundle: Bundle, device: None, key: Path
) -> None:
    signed = run_selftest(bundle, timeout_s=60, key=key)
    plain = run_selftest(open_bundle(bundle.root), timeout_s=60)
    assert plain.path == signed.path and plain.signature is None
    assert signed.signature and not signed.signature.exists()
    open_bundle(bundle.root)


def test_an_interrupted_report_leaves_the_one_before(
    bundle: Bundle, device: None, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run_selftest(bundle, timeout_s=60, key=key)
    assert done.signature
    before = done.path.read_bytes(), done.signature.read_bytes()
    add = Bundle.add

    def interrupted(self: Bundle, path: Path, **about: Any) -> Artefact:
        if path == done.path:
            raise KeyboardInterrupt
        return add(self, path, **about)

    monkeypatch.setattr(Bundle, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_selftest(open_bundle(bundle.root), timeout_s=60, key=key)
    open_bundle(bundle.root).verify()
    assert (done.path.read_bytes(), done.signature.read_bytes()) == before


def test_a_report_elsewhere_leaves_a_signed_bundle_as_it_is(
    bundle: Bundle, device: None, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_engine(bundle)
    sign(bundle, key)
    monkeypatch.setenv("MMPROD_TRUSTED_KEYS", str(key.with_name("device.pub")))
    before = {path: path.read_bytes() for path in bundle.root.rglob("*") if path.is_file()}
    done = run_selftest(
        open_bundle(bundle.root), timeout_s=60, key=key, output=tmp_path / "out" / "device.json"
    )
    assert done.report.ok and done.path.is_file() and done.signature
    after = {path: path.read_bytes() for path in bundle.root.rglob("*") if path.is_file()}
    assert before == after
    assert open_bundle(bundle.root).signed


def test_no_engine_is_opened_without_the_signature_that_is_demanded(
    bundle: Bundle, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_engine(bundle)
    monkeypatch.setattr(candidates, "open_engine", fake_device.honest)
    monkeypatch.setenv("MMPROD_TRUSTED_KEYS", str(key.with_name("device.pub")))
    with pytest.raises(IntegrityError, match="not signed"):
        run_selftest(bundle, timeout_s=60)
    assert not (bundle.root / "reports").exists()


def test_a_key_that_is_of_no_use_is_told_before_the_work(
    bundle: Bundle, device: None, tmp_path: Path
) -> None:
    events: list[ParityEvent] = []
    with pytest.raises(ConfigError, match="no such key"):
        run_selftest(bundle, timeout_s=60, key=tmp_path / "none", on_event=events.append)
    assert not events and not (bundle.root / "reports").exists()


def test_a_wrong_answer_is_in_the_report(
    bundle: Bundle, device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "open_engine", fake_device.crash)
    add_engine(bundle)
    done = run_selftest(bundle, timeout_s=60)
    data = json.loads(done.path.read_text())
    assert not done.report.ok and not data["ok"]
    (engine,) = [r for r in data["parity"]["rows"] if r["status"] == "fail"]
    assert "signal 11" in engine["reason"]


def test_the_place_of_a_report() -> None:
    assert place_name(Probe(reason="no driver")) == f"cpu-{platform.machine()}"
    assert place_name(Probe("sm80", "A100/80GB (SXM)")) == "sm80-A100-80GB-SXM"


@pytest.fixture
def sent(bundle: Bundle, device: None, key: Path, tmp_path: Path) -> Path:
    """A report that the made-up device signed and sent, beside its bundle."""
    add_engine(bundle)
    place = tmp_path / "sent" / "device.json"
    return run_selftest(open_bundle(bundle.root), timeout_s=60, key=key, output=place).path


def test_a_sent_report_is_accepted_by_whom_it_names(bundle: Bundle, sent: Path, key: Path) -> None:
    opened = open_bundle(bundle.root)
    found = accept(sent, opened, [key.with_name("device.pub")])
    assert found.engines == (f"engines/{TARGET}/codec_decode.fp32.plan",)
    assert found.device["name"] == SM89.name and found.signer.key
    generate(key.with_name("other"))
    with pytest.raises(IntegrityError, match="not among the trusted"):
        accept(sent, opened, [key.with_name("other.pub")])


def test_a_report_of_other_files_or_without_all_engines_is_refused(
    bundle: Bundle, sent: Path, key: Path
) -> None:
    public = [key.with_name("device.pub")]
    opened = open_bundle(bundle.root)
    plan = bundle.root / "engines" / TARGET / "embed_text.fp32.plan"
    plan.write_bytes(b"another engine")
    opened.add(plan, role="engine", graph="embed_text", precision="fp32")
    with pytest.raises(EnvironmentMissing, match=r"embed_text\.fp32\.plan was not run"):
        accept(sent, opened, public)
    opened.remove(plan)
    changed = bundle.root / "engines" / TARGET / "codec_decode.fp32.plan"
    changed.write_bytes(b"built anew")
    opened.add(changed, role="engine", graph="codec_decode", precision="fp32")
    with pytest.raises(IntegrityError, match=r"speaks of another engines/.*plan than"):
        accept(sent, opened, public)
    for name in ("codec_decode.fp32.plan", "codec_decode.fp32.json"):
        opened.remove(bundle.root / "engines" / TARGET / name)
    with pytest.raises(IntegrityError, match="speaks of another"):
        accept(sent, opened, public)


def test_a_report_by_other_limits_or_cases_is_refused(
    bundle: Bundle, sent: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = [key.with_name("device.pub")]
    with monkeypatch.context() as patch:
        patch.setattr("mmprod.parity.accept.limits_table", list)
        with pytest.raises(IntegrityError, match="judged by other limits"):
            accept(sent, open_bundle(bundle.root), public)
    opened = open_bundle(bundle.root)
    cases = bundle.root / "reference" / "codec_decode.npz"
    np.savez(cases, **stored("codec_decode", batches=(2,)))  # type: ignore[arg-type]
    opened.add(cases, role="reference", graph="codec_decode")
    with pytest.raises(IntegrityError, match="judged by other cases"):
        accept(sent, opened, public)


def test_what_is_parsed_is_what_was_signed(
    bundle: Bundle, sent: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the file is another one a moment later."""

    def swapped(path: Path, keys: list[Path]) -> tuple[Signer, bytes]:
        found = verify_file(path, keys)
        path.write_text("{}")
        return found

    monkeypatch.setattr("mmprod.parity.accept.verify_file", swapped)
    assert accept(sent, open_bundle(bundle.root), [key.with_name("device.pub")]).engines


def test_a_report_of_a_failure_is_no_proof(
    bundle: Bundle, sent: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "open_engine", fake_device.wrong_output)
    run_selftest(open_bundle(bundle.root), timeout_s=60, key=key, output=sent)
    with pytest.raises(ParityFailed, match=r"4090 \(sm89\): torch-engine codec_decode"):
        accept(sent, open_bundle(bundle.root), [key.with_name("device.pub")])


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 9}', '{"format": 2}', "no json"])
def test_what_is_signed_and_no_report_is_refused(
    bundle: Bundle, key: Path, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    sign_file(path, key)
    with pytest.raises(IntegrityError) as caught:
        accept(path, bundle, [key.with_name("device.pub")])
    assert "selftest" in caught.value.hint
