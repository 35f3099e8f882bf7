"""`mmprod doctor`: what this machine can do, by stage, and the one line that mends the rest."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

import mmprod
from mmprod.cli import probes
from mmprod.cli.command import choices
from mmprod.cli.output import Fields, Output, Table
from mmprod.cli.probes import Finding, Level

SHOWN_PACKAGES = (
    "torch", "deepspeed", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt-rtx-cu13", "tensorrt",
)  # fmt: skip
WORST_FIRST: tuple[Level, ...] = ("blocked", "degraded", "ready")


@dataclass(frozen=True)
class Verdict:
    """One stage: whether it works here, in one line what it can do, and what is in the way."""

    stage: str
    level: Level
    can: str
    findings: tuple[Finding, ...]


def doctor(
    out: Output,
    require: Annotated[
        str, typer.Option(metavar="STAGE,...", help="Exit 3 unless these stages are not blocked.")
    ] = "",
) -> None:
    """What works on this machine, per stage, and the one line that mends what does not."""
    verdicts = examine()
    environment = _environment()
    data = {
        "stages": {verdict.stage: asdict(verdict) for verdict in verdicts},
        "environment": environment,
    }
    rows = [
        (v.stage, v.level, v.can if v.level == "ready" else v.findings[0].what) for v in verdicts
    ]
    fixes = [(v.stage, finding.what, finding.fix) for v in verdicts for finding in v.findings]
    views: list[Table | Fields] = [
        Fields("", environment),
        Table("", ("stage", "verdict", "what"), rows),
    ]
    if fixes:
        views.append(Table("To mend", ("stage", "problem", "do this"), fixes))
    out.result(data, *views)
    _enforce(choices(require), verdicts)


def examine() -> list[Verdict]:
    """The verdict of every stage. The probes that start a process run side by side."""
    stages: dict[str, Callable[[], Verdict]] = {
        "train": _train,
        "export": _export,
        "rtx": lambda: _flavour("rtx"),
        "tensorrt": lambda: _flavour("tensorrt"),
        "serve": _serve,
        "search": _search,
    }
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(stage) for stage in stages.values()]
        return [future.result() for future in running]


def _train() -> Verdict:
    findings = [
        *probes.check_packages("train", optional=("deepspeed", "tensorboard")),
        *probes.check_import("torch", "torch"),
        *probes.check_compiler(),
        *probes.check_machine(Path.cwd()),
    ]
    devices = probes.cuda_devices()
    if devices:
        return _verdict("train", f"on {len(devices)} x {devices[0]}", findings)
    bf16 = probes.cpu_bf16()
    if not bf16:
        what = "the CPU has no bf16 instructions: precision bf16 is slow here"
        fix = "-o codec_train.precision=fp32 -o fusion_train.precision=fp32"
        findings.append(Finding("degraded", what, fix))
    return _verdict("train", f"on the CPU (bf16 by {bf16}); no CUDA device", findings)


def _export() -> Verdict:
    findings = [*probes.check_packages("export"), *probes.check_onnxruntime()]
    findings += probes.check_import("onnxruntime", "onnxruntime")
    return _verdict("export", "ONNX graphs, checked in ONNX Runtime", findings)


def _serve() -> Verdict:
    findings = [*probes.check_packages("serve"), *probes.check_onnxruntime()]
    return _verdict("serve", "bundles through ONNX Runtime, without torch", findings)


def _search() -> Verdict:
    findings = [*probes.check_packages("search"), *probes.check_import("lancedb", "lancedb")]
    return _verdict("search", "pictures and captions indexed and found, without torch", findings)


def _flavour(name: Literal["rtx", "tensorrt"]) -> Verdict:
    """Whether engines of this flavour can be built, as the builder itself sees it."""
    from mmprod.engines.flavours import probe_flavour

    flavour = probe_flavour(name)
    if flavour.usable:
        return _verdict(name, f"builds engines with version {flavour.version}", [])
    if name == "tensorrt":
        what = f"{flavour.reason} ({flavour.hint})" if flavour.hint else flavour.reason
        fix = "run it on the device; here, --flavour rtx builds engines"
        return _verdict(name, "", [Finding("blocked", what, fix)])
    return _verdict(name, "", [Finding("blocked", flavour.reason, flavour.hint)])


def _verdict(stage: str, can: str, findings: list[Finding]) -> Verdict:
    ordered = sorted(findings, key=lambda finding: WORST_FIRST.index(finding.level))
    return Verdict(stage, ordered[0].level if ordered else "ready", can, tuple(ordered))


def _environment() -> dict[str, str]:
    """The lines that a bug report needs."""
    found = {name: probes.installed(name) for name in SHOWN_PACKAGES}
    return {
        "mmprod": mmprod.__version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "cuda": ", ".join(probes.cuda_devices()) or "no device",
        **{name: version or "not installed" for name, version in found.items()},
    }


def _enforce(required: tuple[str, ...], verdicts: list[Verdict]) -> None:
    """Raise ConfigError for an unknown stage, EnvironmentMissing for a blocked one."""
    from mmprod.config.keys import did_you_mean
    from mmprod.errors import ConfigError, EnvironmentMissing

    levels = {verdict.stage: verdict for verdict in verdicts}
    for name in required:
        if name not in levels:
            hint = did_you_mean(name, list(levels)) or f"stages: {', '.join(levels)}"
            raise ConfigError(f"--require {name}: no such stage", hint=hint)
        if levels[name].level == "blocked":
            finding = levels[name].findings[0]
            raise EnvironmentMissing(f"{name} is blocked: {finding.what}", hint=finding.fix)
