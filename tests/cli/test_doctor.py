"""The doctor: verdicts follow what is found, each problem has its one line."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

import mmprod as package
from mmprod.cli import doctor, probes
from mmprod.cli.probes import Finding

from .conftest import Mmprod


def test_doctor_speaks_of_every_stage(mmprod: Mmprod) -> None:
    data = mmprod("doctor", "--json").json()
    assert list(data["stages"]) == ["train", "export", "rtx", "tensorrt", "serve", "search"]
    for stage in data["stages"].values():
        assert stage["level"] in ("ready", "degraded", "blocked")
        assert bool(stage["findings"]) == (stage["level"] != "ready")
        assert all(finding["fix"] for finding in stage["findings"])
    assert data["environment"]["torch"] == importlib.metadata.version("torch")


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Finding("blocked", "torch is not installed", "pip install 'mmprod[train]'")
    found = [
        doctor.Verdict("train", "blocked", "", (broken,)),
        doctor.Verdict("export", "ready", "", ()),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: found)


@pytest.mark.usefixtures("verdicts")
@pytest.mark.parametrize(
    ("required", "code", "words"),
    [
        ("export", 0, ""),
        ("export, train", 3, "train is blocked: torch is not installed"),
        ("trian", 2, "did you mean train?"),
    ],
)
def test_require(required: str, code: int, words: str, mmprod: Mmprod) -> None:
    result = mmprod("doctor", "--require", required)
    assert result.code == code
    assert words in result.err


@pytest.mark.parametrize(
    ("version", "ranges", "inside"),
    [
        ("2.13.0+cpu", ">=2.9,<3", True),
        ("3.0", ">=2.9,<3", False),
        ("3.0.0", "<3", False),
        ("2.8.9", ">=2.9", False),
        ("2.10", ">=2.9", True),
        ("0.19.8", "<0.20,>=0.18", True),
        ("1.7.1.116", "", True),
    ],
)
def test_version_ranges(version: str, ranges: str, inside: bool) -> None:
    assert probes.in_range(version, ranges) is inside


def test_requirements_come_from_the_package_itself_with_nested_extras() -> None:
    names = {need.name for need in probes.requirements("train")}
    assert {"torch", "deepspeed", "pyarrow", "tokenizers"} <= names
    assert "mmprod" not in names
    assert probes.requirements("no-such-extra") == []


def test_checkout_that_is_not_installed_knows_its_requirements(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed = {need.name for need in probes.requirements("export")}
    fake_versions(monkeypatch)
    assert {need.name for need in probes.requirements("export")} == installed
    assert len(probes.requirements("train")) > 5
    monkeypatch.setattr(package, "__file__", str(tmp_path / "mmprod" / "__init__.py"))
    assert probes.check_packages("train")[0].level == "blocked"


def fake_versions(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    known = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(probes, "installed", lambda name: known.get(name, ""))


def test_missing_package_blocks_and_wrong_version_degrades(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_versions(monkeypatch, mmprod="0.1.0", onnxruntime="1.0", onnx="1.20", torch="2.13")
    found = {f.what.split()[0]: f for f in probes.check_packages("export")}
    assert found["onnxscript"].level == "blocked"
    assert found["onnxscript"].fix == "pip install 'mmprod[export]'"
    assert found["onnxruntime"].level == "degraded"
    assert "onnx" not in found


def test_gpu_build_of_onnxruntime_counts_but_both_together_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs = [*probes.requirements("serve"), *probes.requirements("search")]
    others = {need.name: probes.installed(need.name) for need in needs}
    del others["onnxruntime"]
    fake_versions(monkeypatch, mmprod="0.1.0", onnxruntime_gpu="1.30", **others)
    assert probes.check_packages("serve") == []
    assert probes.check_packages("search") == []
    assert probes.check_onnxruntime() == []
    fake_versions(monkeypatch, onnxruntime_gpu="1.30", onnxruntime="1.30")
    assert "overwrite each other" in probes.check_onnxruntime()[0].what


def test_package_that_cannot_be_imported_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_versions(monkeypatch, broken="1.0")
    found = probes.check_import("no_such_module_here", "broken")
    assert "No module named" in found[0].what
    assert probes.check_import("json", "absent") == []


def test_little_disk_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probes, "MIN_DISK", 10**18)
    monkeypatch.setattr(probes, "MIN_SHM", 10**18)
    assert len(probes.check_machine(tmp_path)) == (2 if Path("/dev/shm").is_dir() else 1)


def test_missing_compiler_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "g++" in probes.check_compiler()[0].what
