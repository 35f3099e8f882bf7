"""The devices an engine can be built for, and what each can do. Torch-free, TensorRT-free.

Sources: NVIDIA's support matrices of TensorRT for RTX 1.7 and TensorRT 11.4. For TensorRT for RTX
each refusal listed here was also seen in a real build (`tests/engines/test_targets.py` repeats
them); whether a single graph builds is still for the builder to say.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from mmprod.errors import ConfigError

FlavourName = Literal["rtx", "tensorrt"]
FLAVOURS: dict[str, str] = {"rtx": "TensorRT for RTX", "tensorrt": "TensorRT"}


@dataclass(frozen=True)
class Target:
    """A compute capability: its name, some devices, and whether TensorRT for RTX knows it."""

    name: str
    devices: str
    rtx: bool

    @property
    def capability(self) -> int:
        """Ten times the compute capability, e.g. 86."""
        return int(self.name.removeprefix("sm"))


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("sm75", "RTX 20, T4", rtx=True),
        Target("sm80", "A100, A30", rtx=True),
        Target("sm86", "RTX 30, A10, A40", rtx=True),
        Target("sm87", "Jetson Orin", rtx=False),
        Target("sm89", "RTX 40, L4, L40S", rtx=True),
        Target("sm90", "H100, H200", rtx=False),
        Target("sm100", "B200", rtx=False),
        Target("sm103", "B300", rtx=False),
        Target("sm110", "Jetson Thor", rtx=False),
        Target("sm120", "RTX 50, RTX PRO 6000 Blackwell", rtx=True),
        Target("sm121", "GB10", rtx=True),
    )
}

FIRST: dict[str, int] = {
    "fp32": 0,
    "fp16": 0,
    "bf16": 80,
    "mixed": 75,
    "int8": 75,
    "fp8": 89,
}
"""By precision, the first capability whose hardware has it."""

NO_FP32_PRODUCT = "TensorRT for RTX has no fp32 matrix product for it"
REFUSED: dict[tuple[str, str], str] = {
    ("fp32", "sm75"): NO_FP32_PRODUCT,
    ("int8", "sm75"): f"{NO_FP32_PRODUCT}, which int8 graphs start from",
}
"""What TensorRT for RTX refuses although the hardware could."""


def find_target(name: str) -> Target:
    """The target of this name. Raises ConfigError with the nearest names for an unknown one."""
    if name in TARGETS:
        return TARGETS[name]
    digits = re.sub(r"[^0-9]", "", name)
    near = [f"sm{digits}"] if f"sm{digits}" in TARGETS else []
    near = near or difflib.get_close_matches(name.lower(), TARGETS, n=2, cutoff=0.6)
    known = f"known targets: {', '.join(TARGETS)}"
    raise ConfigError(
        f"unknown target {name!r}",
        hint=f"did you mean {' or '.join(near)}? {known}" if near else known,
    )


def check_precision(precision: str) -> None:
    """Raises ConfigError with the nearest names when there is no such precision."""
    if precision in FIRST:
        return
    near = difflib.get_close_matches(precision.lower(), FIRST, n=2, cutoff=0.5)
    known = f"known precisions: {', '.join(FIRST)}"
    raise ConfigError(
        f"unknown precision {precision!r}",
        hint=f"did you mean {' or '.join(near)}? {known}" if near else known,
    )


def check_request(precision: str, target: str, flavour: FlavourName = "rtx") -> Target:
    """The target, if engines of this precision can be built for it.

    Raises ConfigError naming the cause.
    """
    found = find_target(target)
    check_precision(precision)
    if flavour == "rtx" and not found.rtx:
        rtx = ", ".join(t.name for t in TARGETS.values() if t.rtx)
        raise ConfigError(
            f"{target} ({found.devices}) is no target of TensorRT for RTX, which builds for {rtx}",
            hint=f"on the device: mmprod build BUNDLE --trt --flavour tensorrt --target {target}",
        )
    able = [t.name for t in TARGETS.values() if _cause(precision, t, flavour) is None]
    cause = _cause(precision, found, flavour)
    if cause is not None:
        raise ConfigError(
            f"{precision} engines cannot be built for {target} ({found.devices}): {cause}",
            hint=f"targets with {precision}: {', '.join(able)}; or ask for fp16, which all have",
        )
    return found


def _cause(precision: str, target: Target, flavour: FlavourName) -> str | None:
    """Why this flavour cannot build this precision for this target; None when it can."""
    if flavour == "rtx" and not target.rtx:
        return "not a target of TensorRT for RTX"
    if target.capability < FIRST[precision]:
        return f"the hardware has {precision} from sm{FIRST[precision]} on"
    if flavour == "rtx" and (precision, target.name) in REFUSED:
        return REFUSED[precision, target.name]
    return None
