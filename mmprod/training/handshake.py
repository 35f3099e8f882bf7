"""The first exchange of a job's ranks: all were asked the same, and all run the same code.

Each rank checks its own configuration first. Whatever is wrong on any of them, and whatever differs
between them, becomes one error that all ranks raise, within seconds, before anything is written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import mmprod
from mmprod.config.keys import flatten
from mmprod.config.schema import Config
from mmprod.errors import ConfigError, EnvironmentMissing, MmprodError
from mmprod.training.deepspeed_config import Json
from mmprod.training.deepspeed_file import leaves
from mmprod.training.distributed import World, gather, join

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "deepspeed", "numpy", "pyarrow", "tokenizers", "safetensors")
SHOWN = 5


@dataclass(frozen=True)
class _Paper:
    """What one rank shows. `asked`: settings that must agree; `runs`: what executes them."""

    host: str
    failure: MmprodError | OSError | None = None
    asked: str = ""
    runs: tuple[tuple[str, str], ...] = ()


def shake_hands(
    world: World, config: Config, order: Mapping[str, Any], check: Callable[[], Json | None]
) -> Json | None:
    """Run `check` on every rank (it reads and checks the DeepSpeed file) and compare the ranks:
    configuration, DeepSpeed file, `order` (what else the command line says), code and libraries.

    Returns what `check` does. Raises its first failure, ConfigError or EnvironmentMissing, on all
    ranks. Collective.
    """
    host = socket.gethostname()
    try:
        raw = check()
    except (MmprodError, OSError) as error:
        _compare(world, _Paper(host, error))
        raise  # only a process alone comes here
    asked = _settings(config, order, raw)
    paper = _Paper(host, None, _digest(asked), tuple(_runs(world).items()))
    _compare(world, paper, asked)
    return raw


def fail_together(error: MmprodError) -> NoReturn:
    """A rank that failed before it met the others meets them to say so: they would wait for it.

    Raises `error`, or that of a lower rank.
    """
    world = join(group=True)
    _compare(world, _Paper(socket.gethostname(), error))
    raise error


def _compare(world: World, own: _Paper, asked: Mapping[str, str] | None = None) -> None:
    """Raise the same error on all ranks unless all papers are whole and equal."""
    papers = gather(world, own)
    _raise_failures(papers)
    first = papers[0]
    for rank, paper in enumerate(papers):
        if paper.runs != first.runs:
            raise _other_code(rank, paper, first)
    other = next((rank for rank, paper in enumerate(papers) if paper.asked != first.asked), None)
    if other is None:
        return
    # Large, and seldom needed: only the two that are compared send it.
    settings = gather(world, dict(asked or {}) if world.rank in (0, other) else {})
    raise _other_settings(other, papers[other].host, settings[other], settings[0])


def _raise_failures(papers: Sequence[_Paper]) -> None:
    failed = [(rank, paper) for rank, paper in enumerate(papers) if paper.failure is not None]
    if not failed:
        return
    rank, paper = failed[0]
    error = paper.failure
    assert error is not None
    if len(failed) < len(papers) and isinstance(error, MmprodError):
        raise type(error)(f"rank {rank} on {paper.host}: {error.message}", hint=error.hint)
    raise error


def _other_code(rank: int, paper: _Paper, first: _Paper) -> EnvironmentMissing:
    parts = [
        f"{name} {theirs} instead of {ours}"
        for (name, theirs), (_, ours) in zip(paper.runs, first.runs, strict=True)
        if theirs != ours
    ]
    return EnvironmentMissing(
        f"rank {rank} on {paper.host} does not run what rank 0 on {first.host} runs: "
        f"{', '.join(parts)}",
        hint="install the same versions on every node, e.g. from one image or one shared folder",
    )


def _other_settings(
    rank: int, host: str, theirs: Mapping[str, str], ours: Mapping[str, str]
) -> ConfigError:
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    shown = ", ".join(
        f"{key} {theirs.get(key, 'absent')} (rank 0: {ours.get(key, 'absent')})"
        for key in keys[:SHOWN]
    )
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ConfigError(
        f"rank {rank} on {host} was started with other settings than rank 0: {shown}{more}",
        hint="give every rank the same command, configuration and DeepSpeed file",
    )


def _settings(config: Config, order: Mapping[str, Any], raw: Json | None) -> dict[str, str]:
    """Every setting as text; the DeepSpeed file's keys after `ds.json`."""
    found = {key: str(value) for key, value in order.items()}
    found |= {key: json.dumps(value) for key, value in flatten(config)}
    found |= {f"ds.json {key}": json.dumps(value) for key, value in leaves(raw or {})}
    return found


def _runs(world: World) -> dict[str, str]:
    versions = {"mmprod": mmprod.__version__, "its source": source_digest()[:12]}
    versions |= {"Python": ".".join(platform.python_version_tuple()[:2])}
    versions |= {name: _version(name) for name in LIBRARIES}
    return {**versions, "device": world.device.type}


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "absent"


def source_digest(root: Path | None = None) -> str:
    """SHA-256 over names and contents of the package's own source files."""
    root = root or Path(mmprod.__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(path.relative_to(root).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _digest(settings: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
