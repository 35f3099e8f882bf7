"""Which TensorRT is usable here, found by trying it in a subprocess, and which one to take."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmprod.engines.pool import Worker, worker_command
from mmprod.engines.targets import FLAVOURS, FlavourName
from mmprod.errors import ConfigError, EnvironmentMissing, MmprodError
from mmprod.runners.cuda import find_device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flavour:
    """One kind of TensorRT: its version when it loads, else why it is of no use here."""

    name: FlavourName
    version: str
    usable: bool
    reason: str = ""
    hint: str = ""


def available_flavours() -> list[Flavour]:
    """Both flavours as they are on this machine."""
    return [probe_flavour("tensorrt"), probe_flavour("rtx")]


def probe_flavour(name: FlavourName) -> Flavour:
    """Load a flavour in a subprocess. `tensorrt` is not touched without a device: it may crash."""
    device = find_device()
    if name == "tensorrt" and not device.found:
        return Flavour(name, "", False, "no CUDA device", device.reason)
    try:
        worker = Worker(worker_command(name))
    except MmprodError as error:
        return Flavour(name, "", False, error.message, error.hint)
    worker.close()
    return Flavour(name, worker.version, True)


def choose_flavour(asked: Literal["auto", "rtx", "tensorrt"], targets: Sequence[str]) -> Flavour:
    """The flavour to build with: as asked, or for `auto` the one that fits targets and machine.

    `auto` takes `tensorrt` where it works and this device is the only target, else `rtx`; the log
    says which and why. Raises ConfigError, and EnvironmentMissing when the flavour is not usable.
    """
    if asked not in ("auto", *FLAVOURS):
        near = difflib.get_close_matches(str(asked), ["auto", *FLAVOURS], n=1, cutoff=0.4)
        raise ConfigError(
            f"unknown flavour {asked!r}",
            hint=f"did you mean {near[0]}?" if near else "known: auto, rtx, tensorrt",
        )
    here = find_device().target
    if asked == "auto":
        found, why = _choose(targets, here)
        log.info("building with %s %s: %s", FLAVOURS[found.name], found.version, why)
    else:
        found = _usable(probe_flavour(asked))
    others = [target for target in targets if target != here]
    if found.name == "tensorrt" and others:
        raise ConfigError(
            f"TensorRT builds for the device it runs on, {here}, not for {', '.join(others)}",
            hint=f"--target {here}, or --flavour rtx, which builds for other devices",
        )
    return found


def _choose(targets: Sequence[str], here: str) -> tuple[Flavour, str]:
    """What `auto` takes, and why."""
    if set(targets) == {here}:
        regular = probe_flavour("tensorrt")
        if regular.usable:
            return regular, f"this device is the target {here}"
        why = f"TensorRT is not usable here ({regular.reason})"
    else:
        why = f"the targets are not just this device ({here})" if here else "no CUDA device"
    return _usable(probe_flavour("rtx")), why


def _usable(found: Flavour) -> Flavour:
    if not found.usable:
        raise EnvironmentMissing(
            f"{FLAVOURS[found.name]} is not usable here: {found.reason}", hint=found.hint
        )
    return found
