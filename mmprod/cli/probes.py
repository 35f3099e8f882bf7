"""What `mmprod doctor` looks at: installed packages against this package's own requirements, the
device, the machine. Nothing heavy is imported here: what must be tried is tried in a subprocess.
"""

from __future__ import annotations

import importlib.metadata as metadata
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import mmprod

Level = Literal["ready", "degraded", "blocked"]

PROBE_SECONDS = 60
MIN_DISK = 5_000_000_000
MIN_SHM = 256_000_000
TWINS = {"onnxruntime": "onnxruntime-gpu"}
"""Packages of which another one gives the same import."""


@dataclass(frozen=True)
class Finding:
    """One thing that keeps a stage from being ready, and the one line that mends it."""

    level: Level
    what: str
    fix: str


@dataclass(frozen=True)
class Requirement:
    """A package this one asks for: name and version range (`>=2.9,<3`)."""

    name: str
    versions: str


def requirements(extra: str) -> list[Requirement]:
    """What `mmprod[extra]` needs, nested extras included; empty where nobody knows."""
    found: list[Requirement] = []
    for line in _dependencies().get(extra, []):
        match = re.fullmatch(r"([\w.-]+)(?:\[([\w,-]+)\])?\s*(.*)", line)
        if match and match[1] == "mmprod":
            found += [need for nested in match[2].split(",") for need in requirements(nested)]
        elif match:
            found.append(Requirement(match[1], match[3]))
    return found


def installed(package: str) -> str:
    """Version of an installed package, "" when absent."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def check_packages(extra: str, *, optional: Sequence[str] = ()) -> list[Finding]:
    """Missing packages of an extra block its stage; `optional` ones, or wrong versions, degrade."""
    findings: list[Finding] = []
    if not _dependencies():
        what = "mmprod is not installed here, so the packages it needs are not known"
        return [Finding("blocked", what, "pip install mmprod")]
    for need in requirements(extra):
        version = installed(need.name) or installed(TWINS.get(need.name, need.name))
        fix = f"pip install 'mmprod[{extra}]'"
        if not version:
            level: Level = "degraded" if need.name in optional else "blocked"
            findings.append(Finding(level, f"{need.name} is not installed", fix))
        elif not in_range(version, need.versions):
            what = f"{need.name} {version} is outside the tested range {need.versions}"
            findings.append(Finding("degraded", what, fix))
    return findings


def in_range(version: str, ranges: str) -> bool:
    """Whether `2.13.0` lies in `>=2.9,<3`: the two operators our requirements use."""
    number = _number(version)
    for part in filter(None, (piece.strip() for piece in ranges.split(","))):
        if part.startswith(">=") and number < _number(part[2:]):
            return False
        if part.startswith("<") and number >= _number(part[1:]):
            return False
    return True


def check_import(module: str, package: str) -> list[Finding]:
    """Whether an installed package can be imported, tried in a process of its own."""
    if not installed(package):
        return []
    code, text = try_python(f"import {module}")
    if code == 0:
        return []
    last = text.strip().splitlines()[-1:] or [f"exit code {code}"]
    fix = f"pip install --force-reinstall {package}"
    return [Finding("blocked", f"import {module} fails: {last[0]}", fix)]


def check_onnxruntime() -> list[Finding]:
    """Two ONNX Runtime packages share one import name, and the later installed one wins."""
    if installed("onnxruntime") and installed("onnxruntime-gpu"):
        fix = "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one you want"
        what = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other"
        return [Finding("degraded", what, fix)]
    return []


def check_compiler() -> list[Finding]:
    """DeepSpeed compiles CPU operators at first use."""
    if shutil.which("g++"):
        return []
    what = "g++ is missing: DeepSpeed cannot compile its CPU operators"
    return [Finding("degraded", what, "apt install g++ (or your system's C++ compiler)")]


def check_machine(folder: Path) -> list[Finding]:
    """Free disk where runs are written, and shared memory between ranks."""
    findings = []
    free = shutil.disk_usage(folder).free
    if free < MIN_DISK:
        what = f"only {free / 1e9:.1f} GB free in {folder}"
        findings.append(Finding("degraded", what, "free some space, or write elsewhere with --out"))
    shm = Path("/dev/shm")
    if shm.is_dir() and (size := shutil.disk_usage(shm).total) < MIN_SHM:
        what = f"/dev/shm has {size / 1e6:.0f} MB, which is little for several ranks"
        findings.append(Finding("degraded", what, "in a container: --shm-size=1g"))
    return findings


def cuda_devices() -> list[str]:
    """Names of the CUDA devices that the driver can really open; empty without any."""
    code, _ = try_python(
        "import ctypes, sys; sys.exit(ctypes.CDLL('libcuda.so.1').cuInit(0))", quiet=True
    )
    if code != 0:
        return []
    program = shutil.which("nvidia-smi")
    if program is None:
        return ["CUDA device"]
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    listing = subprocess.run(
        command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
    )
    names = listing.stdout.split("\n") if listing.returncode == 0 else []
    return [name.strip() for name in names if name.strip()] or ["CUDA device"]


def cpu_bf16() -> str:
    """What the CPU has for bf16 matrix products: `amx`, `avx512`, or "" for nothing (Linux x86)."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    return "amx" if "amx_bf16" in flags else "avx512" if "avx512_bf16" in flags else ""


def try_python(code: str, *, quiet: bool = False) -> tuple[int, str]:
    """Run Python code in a subprocess: exit code and stderr. A time-out counts as code 124."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, f"no answer within {PROBE_SECONDS} s"
    return done.returncode, "" if quiet else done.stderr


def _dependencies() -> dict[str, list[str]]:
    """Requirements by extra: of the installed package, else from the checkout's pyproject.toml."""
    found: dict[str, list[str]] = {}
    if installed("mmprod"):
        for line in metadata.requires("mmprod") or []:
            match = re.fullmatch(r"(.*?)\s*;\s*extra == ['\"](.+?)['\"]", line)
            if match:
                found.setdefault(match[2], []).append(match[1])
        return found
    project = Path(mmprod.__file__).resolve().parent.parent / "pyproject.toml"
    if project.is_file():
        content = tomllib.loads(project.read_text(encoding="utf-8"))
        found = content["project"]["optional-dependencies"]
    return found


def _number(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` -> (2, 13, 0), without trailing zeros so that 3 == 3.0."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    parts = [int(piece) for piece in match[0].split(".")] if match else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
