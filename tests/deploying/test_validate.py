"""Validators see what is wrong: rendered files, each changed in one place."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mmprod.deploying import programs
from mmprod.deploying.files import write_files
from mmprod.deploying.validate import validate
from mmprod.deploying.verdicts import Missing, Verdict
from mmprod.errors import ConfigError
from tools import deploy_golden

SERVE = "kubernetes/serve.yaml"
KSERVE = "kubernetes/kserve.yaml"
JOBSET = "kubernetes/jobset.yaml"
TRAINJOB = "kubernetes/trainjob.yaml"
UNIT = "systemd/mmprod-serve.service"
DOCKER = "docker/Dockerfile.serve"
COMPOSE = "compose/compose.yaml"
ALERTS = "monitoring/alerts.yml"
CONFIG = "triton/graph.codec_decode/config.pbtxt"

HARM = (
    (SERVE, "maxReplicas: 6", "maxReplicas: six", "kubernetes-validate 1.34", "maxReplicas"),
    (SERVE, "readinessProbe:", "readynessProbe:", "kubernetes-validate 1.34", "readynessProbe"),
    (SERVE, "kind: Deployment", "kind: Deploymint", "kubernetes-validate 1.34", "no schema"),
    (SERVE, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "own rules", "root"),
    (SERVE, "runAsNonRoot: true", "runAsNonRoot: false", "own rules", "runAsNonRoot"),
    (SERVE, "serve:0.1.0", "serve:latest", "own rules", "no version"),
    (SERVE, "- --key-file", "- --other", "own rules", "without a key"),
    (
        SERVE,
        "\n            memory: 832Mi\n            cpu: '4'",
        "\n            cpu: '4'",
        "own",
        "memory",
    ),
    (SERVE, "- ALL", "- CHOWN", "own rules", "capabilities"),
    (KSERVE, "protocolVersions:", "protocols:", "own fields of KServe", "protocols"),
    (KSERVE, "    runtime: mmprod-runtime", "    runner: x", "own fields of KServe", "runner"),
    (KSERVE, "mountPath: /tmp", "mountPoint: /tmp", "own fields of KServe", "mount"),
    (JOBSET, "replicatedJobs:", "replicatedJob:", "kubeflow-trainer-api", "replicatedJob"),
    (JOBSET, "restartPolicy: Never", "restartPolicy: Sometimes", "kubeflow", "restartPolicy"),
    (JOBSET, "- 75\n", "- 76\n", "own rules", "75"),
    (JOBSET, "PeriodSeconds: 300", "PeriodSeconds: 5", "own rules", "short for a save"),
    (TRAINJOB, "runtimeRef:", "runtime:", "kubeflow-trainer-api", "runtime"),
    (TRAINJOB, "numNodes: 2\n", "numNodes: two\n", "kubeflow-trainer-api", "numNodes"),
    (UNIT, "MemoryMax=", "MemoryMaximum=", "systemd-analyze verify", "MemoryMaximum"),
    (UNIT, "ProtectSystem=strict", "ProtectSystem=no", "own rules", "ProtectSystem"),
    (
        UNIT,
        "ProtectSystem=strict\nProtectHome=yes\nPrivateTmp=yes\n",
        "",
        "own rules",
        "ProtectHome",
    ),
    (UNIT, "parity selftest", "parity nothing", "own rules", "self-test"),
    (UNIT, "--host 127.0.0.1", "--host 0.0.0.0", "own rules", "without a key"),
    (DOCKER, "USER 10001:10001\n", "", "own rules", "root"),
    (DOCKER, ":3.11.14-slim-bookworm", ":latest", "hadolint", "DL3007"),
    (DOCKER, 'ENTRYPOINT ["mmprod",', "ENTRYPOINT mmprod", "hadolint", "DL3025"),
    (DOCKER, "ENV PATH", "ENV SERVE_KEY=abc PATH", "own rules", "secret"),
    (DOCKER, "HEALTHCHECK", "HEALTHYCHECK", "hadolint", ""),
    (
        COMPOSE,
        "read_only: true",
        "readonly: true",
        "compose-spec schema",
        "readonly",
    ),
    (COMPOSE, "127.0.0.1:8080:8080", "8080:8080", "own rules", "every address"),
    (COMPOSE, "user: 10001:10001", "user: root", "own rules", "root"),
    ("slurm/train.sbatch", "#SBATCH --requeue\n", "", "own rules", "--requeue"),
    ("slurm/train.sbatch", "scontrol requeue", "scontrol hold", "own rules", "75"),
    ("slurm/train.sbatch", 'exit "$code"', "exit $cod", "shellcheck", "SC2154"),
    (
        "monitoring/alerts.yml",
        "mmprod_ready == 0",
        "mmprod_ready ==",
        "promtool check rules",
        "parse",
    ),
    (ALERTS, "severity: critical", "level: critical", "own rules", "severity"),
    ("monitoring/prometheus.yml", "scrape_configs", "scrape_config", "promtool check config", ""),
    ("monitoring/dashboard.json", "sum by (graph) (", "sum by graph (", "promtool", "parse"),
    ("monitoring/dashboard.json", '"x": 12', '"x": 6', "own rules (model of Grafana)", "overlap"),
    (CONFIG, "max_batch_size: 16", "max_batch: 16", "protobuf of Triton", "max_batch"),
    (CONFIG, "TYPE_UINT8", "TYPE_PIXELS", "protobuf of Triton", "TYPE_PIXELS"),
    (CONFIG, 'name: "graph.codec_decode"', 'name: "other"', "own rules", "is called other"),
    ("triton/graph.codec_decode/1/model.onnx", "onnx", "xnno", "own rules", "listed hash"),
    ("triton/graph.codec_decode/1/model.py", "def ", "deff ", "Python's compiler", "Syntax"),
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    deploy_golden.write_bundle(root / "bundle")
    write_files(deploy_golden.rendered()["cpu"], root / "out", root / "bundle")
    return root / "out"


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm", HARM, ids=lambda harm: f"{Path(harm[0]).name} {harm[2][:20]}".strip()
)
def test_harm_is_found(harm: tuple[str, str, str, str, str], good: Path, tmp_path: Path) -> None:
    name, old, new, validator, says = harm
    text = (good / name).read_text(encoding="utf-8")
    assert old in text
    # A model is judged as a folder, anything else alone.
    part = Path(*Path(name).parts[:2]) if name.startswith("triton") else Path(name)
    place = tmp_path / part
    place.parent.mkdir(parents=True)
    shutil.copytree(good / part, place) if (good / part).is_dir() else shutil.copy(
        good / part, place
    )
    (tmp_path / name).write_text(text.replace(old, new), encoding="utf-8")
    verdicts = validate(tmp_path)
    missing = [v.detail for v in verdicts if v.status == "not validated" and v.validator]
    found = [v for v in verdicts if v.status == "fail" and v.validator.startswith(validator)]
    if missing and not found:
        pytest.skip(missing[0])
    assert any(says in verdict.detail for verdict in found), verdicts


def test_a_missing_tool_is_said(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(program: str) -> str:
        raise Missing(program, programs.SOURCES[program])

    monkeypatch.setattr(programs, "_found", missing)
    verdicts = validate(good / "monitoring")
    (first,) = [v for v in verdicts if v.file == "prometheus.yml"]
    detail = "promtool is not installed (apt install prometheus)"
    assert first == Verdict("prometheus.yml", "promtool check config", "not validated", detail)
    assert [v.status for v in verdicts if v.validator.startswith("own")] == ["pass", "pass"]


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")]
)
def test_nothing_to_validate_is_an_error(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(ConfigError, match="x"):
        validate(tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("kubernetes/a.yaml", "- 1\n- 2\n"),
        ("kubernetes/a.yaml", "kind: JobSet\n"),
        ("kubernetes/a.yaml", "kind: Deployment\napiVersion: 3\n"),
        ("compose.yaml", "- 1\n"),
        ("alerts.yml", "groups: 3\n"),
        ("dashboard.json", "[]"),
        ("config.pbtxt", "\x00"),
        ("model.py", "\x00"),
    ],
)
def test_files_of_another_form_are_verdicts(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert "fail" in {verdict.status for verdict in validate(tmp_path)}


def test_manifests_are_known_by_their_kind_of_file(good: Path, tmp_path: Path) -> None:
    names = {verdict.file for verdict in validate(good / "kubernetes")}
    assert "serve.yaml (Deployment)" in names
    (tmp_path / "empty.yaml").write_text("# nothing\n", encoding="utf-8")
    assert "fail" in {verdict.status for verdict in validate(tmp_path)}


def test_a_tool_too_old_for_the_question_is_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 1, "", "unrecognized option '--offline=true'\n")
    monkeypatch.setattr(programs, "_found", lambda program: program)
    monkeypatch.setattr(programs, "_run", lambda command: done)
    assert "--offline" in programs.systemd_exposure(Path("x.service"))


def test_broken_yaml_is_a_verdict(tmp_path: Path) -> None:
    (tmp_path / "kubernetes").mkdir()
    (tmp_path / "kubernetes" / "a.yaml").write_text("a: [", encoding="utf-8")
    (verdict,) = validate(tmp_path)
    assert (verdict.status, verdict.validator) == ("fail", "YAML")
    assert "line 1" in verdict.detail
