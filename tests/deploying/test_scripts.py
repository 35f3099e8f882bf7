"""The batch script and the alert rules, run: what they do, not how they look."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tools.deploy_golden import GOLDEN

SCRIPT = GOLDEN / "cpu" / "slurm" / "train.sbatch"


def _run(tmp_path: Path, srun: str) -> subprocess.Popen[str]:
    """The batch script with stand-ins for Slurm's programs."""
    for name, body in (("srun", srun), ("scontrol", f'echo "$@" >> {tmp_path}/requeued')):
        program = tmp_path / name
        program.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    return subprocess.Popen(
        ["bash", str(SCRIPT)], env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE
    )


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (75, True)])
def test_only_75_puts_the_job_back(code: int, requeued: bool, tmp_path: Path) -> None:
    script = _run(tmp_path, f'echo "$@" > {tmp_path}/asked; exit {code}')
    script.communicate(timeout=30)
    assert script.returncode == code
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    asked = (tmp_path / "asked").read_text()
    assert "--cpus-per-task=1 mmprod train --config base -o data.path=data" in asked


def test_a_signal_to_the_script_waits_for_the_ranks(tmp_path: Path) -> None:
    script = _run(tmp_path, f"touch {tmp_path}/runs; sleep 1; exit 75")
    while not (tmp_path / "runs").exists():
        time.sleep(0.02)
    script.send_signal(signal.SIGTERM)
    said, _ = script.communicate(timeout=30)
    assert script.returncode == 75 and "waiting for the ranks" in said
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"


ALERTS = """
rule_files: [alerts.yml]
evaluation_interval: 1m
tests:
- interval: 1m
  input_series:
  - {series: 'mmprod_shadow_checks_total{graph="edit",verdict="fail"}', values: '0x20 1x40'}
  - {series: 'mmprod_shadow_checks_total{graph="edit",verdict="pass"}', values: '0+1x60'}
  - {series: 'mmprod_shadow_checks_total{graph="joint",verdict="error"}', values: '0+1x60'}
  - {series: 'mmprod_shadow_checks_total{graph="joint",verdict="pass"}', values: '0+9x60'}
  - {series: 'mmprod_shadow_limit_used_bucket{graph="edit",le="1"}', values: '0+0x60'}
  - {series: 'mmprod_shadow_limit_used_bucket{graph="edit",le="2"}', values: '0+1x60'}
  - {series: 'mmprod_shadow_limit_used_bucket{graph="edit",le="+Inf"}', values: '0+1x60'}
  - {series: 'mmprod_requests_total{model="edit",status="200"}', values: '0+90x60'}
  - {series: 'mmprod_requests_total{model="edit",status="500"}', values: '0+10x60'}
  - {series: 'mmprod_requests_total{model="edit",status="503"}', values: '0+90x60'}
  - {series: 'mmprod_queue_requests{graph="edit"}', values: '10x60'}
  alert_rule_test:
  - eval_time: 25m
    alertname: MmprodShadowFailed
    exp_alerts:
    - exp_labels: {severity: critical, graph: joint}
      exp_annotations:
        runbook: docs/deploy.md#alerts
        summary: 'joint often answers otherwise than the reference: take the server out'
  - eval_time: 5m
    alertname: MmprodDown
    exp_alerts:
    - exp_labels: {severity: critical, job: mmprod}
      exp_annotations:
        runbook: docs/deploy.md#alerts
        summary: a server does not answer, or there is none
  - eval_time: 50m
    alertname: MmprodShadowDrift
    exp_alerts:
    - exp_labels: {severity: warning, graph: edit}
      exp_annotations:
        runbook: docs/deploy.md#alerts
        summary: edit uses more than nine tenths of its parity limit
  - eval_time: 20m
    alertname: MmprodErrors
    exp_alerts:
    - exp_labels: {severity: critical, model: edit}
      exp_annotations:
        runbook: docs/deploy.md#alerts
        summary: edit fails in 5.263% of its requests
  - {eval_time: 50m, alertname: MmprodQueue}
"""


@pytest.mark.slow
def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: apt install prometheus")
    shutil.copy(GOLDEN / "cpu" / "monitoring" / "alerts.yml", tmp_path)
    (tmp_path / "test.yml").write_text(ALERTS, encoding="utf-8")
    command = ["promtool", "test", "rules", "test.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
