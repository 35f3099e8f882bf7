"""How far a compiled graph may be from PyTorch in fp32, and why: one table, printed with every
report.

A limit belongs to a role and a precision, and is another one for samplers: there every step feeds
on the ids drawn before, so one id on the edge between two choices changes all that follows, in
both programs equally rightly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mmprod.errors import ConfigError
from mmprod.graphs.spec import GraphSpec, Role, Tensor
from mmprod.parity.compare import PSNR_CAP

Kind = Literal["plain", "sampler"]


@dataclass(frozen=True)
class Limit:
    """The largest (`bound` "<=") or smallest (">=") allowed value of a figure; `perfect`: its
    value for equal outputs.
    """

    figure: str
    bound: Literal["<=", ">="]
    value: float
    reason: str
    perfect: float = 0.0


@dataclass(frozen=True)
class Check:
    """A figure held against its limit. `margin` >= 0: inside, in the figure's unit."""

    figure: str
    bound: str
    limit: float
    value: float
    margin: float
    used: float | None
    """Share of the allowance that is used up, 1 at the limit; None: nothing was allowed and
    something differs.
    """

    @property
    def ok(self) -> bool:
        return self.margin >= 0

    def __str__(self) -> str:
        return f"{self.figure} {self.value:.6g} {self.bound} {self.limit:.6g}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


def _at_most(figure: str, value: float, reason: str) -> Limit:
    return Limit(figure, "<=", value, reason)


def _at_least(figure: str, value: float, reason: str, perfect: float = 1.0) -> Limit:
    return Limit(figure, ">=", value, reason, perfect)


_SAME_IDS = _at_least(
    "agreement",
    1.0,
    "the same weights in the same precision must pick the same ids; rounding of about 1e-6 is far "
    "below the usual gap between the best and the second",
)
_SAME_PIXELS = _at_most(
    "max_level",
    1.0,
    "rounding to whole levels turns an error of 1e-6 beside a half into one level, never into two",
)
_FLOOR_IDS = _at_least(
    "agreement",
    0.9,
    "half precision moves a draw only when its random number lies within about 1e-3 of a border "
    "between two ids; what such a draw changes later may differ, most of the result may not",
)

LIMITS: Mapping[tuple[Role, str, Kind], tuple[Limit, ...]] = {
    ("codes", "fp32", "plain"): (_SAME_IDS,),
    ("codes", "fp32", "sampler"): (_SAME_IDS,),
    ("tokens", "fp32", "sampler"): (_SAME_IDS,),
    ("pixels", "fp32", "plain"): (_SAME_PIXELS,),
    ("pixels", "fp32", "sampler"): (_SAME_PIXELS,),
    ("logits", "fp32", "plain"): (
        _at_most("max_abs", 1e-3, "sums of a few hundred float32 terms, reordered: 1e-5 is usual"),
        _at_most(
            "top1_regret",
            1e-4,
            "the most likely id must be the same unless the reference rates both within 1e-4",
        ),
        _at_most("kl_max", 1e-6, "no position may change its distribution visibly"),
    ),
    ("embedding", "fp32", "plain"): (
        _at_least(
            "cosine", 1 - 1e-6, "unit vectors to float32 accuracy: ranking by search is unchanged"
        ),
    ),
    ("codes", "fp16", "plain"): (
        _at_least(
            "agreement",
            0.99,
            "half precision (relative error 5e-4) flips only features between two codes",
        ),
    ),
    ("codes", "fp16", "sampler"): (_FLOOR_IDS,),
    ("tokens", "fp16", "sampler"): (_FLOOR_IDS,),
    ("pixels", "fp16", "plain"): (
        _at_least("psnr", 45.0, "an error of 1.4 levels on average cannot be seen", PSNR_CAP),
        _at_most("max_level", 16.0, "no spot may stand out, however good the average"),
    ),
    ("pixels", "fp16", "sampler"): (
        _at_least(
            "psnr",
            20.0,
            "a code that differs changes its patch; with nine in ten equal the picture stays",
            PSNR_CAP,
        ),
    ),
    ("logits", "fp16", "plain"): (
        _at_least(
            "top1", 0.98, "only positions that hesitate between two ids may change their mind"
        ),
        _at_most(
            "kl_mean", 1e-3, "a draw moves with a chance of about 2 % at most (Pinsker's bound)"
        ),
    ),
    ("embedding", "fp16", "plain"): (
        _at_least("cosine", 0.999, "directions turn by 2.6 degrees at most"),
    ),
}

PRECISIONS = tuple(dict.fromkeys(precision for _, precision, _ in LIMITS))


def kind_of(spec: GraphSpec) -> Kind:
    return "sampler" if spec.loop_steps else "plain"


def limits_for(spec: GraphSpec, output: Tensor, precision: str) -> tuple[Limit, ...]:
    """The limits of one output. Raises ConfigError for a precision or role that has none."""
    limits = LIMITS.get((output.role, precision, kind_of(spec)))
    if limits is None:
        raise ConfigError(
            f"no parity limits for {output.role} in {precision} ({kind_of(spec)} graphs)",
            hint=f"precisions with limits: {', '.join(PRECISIONS)}",
        )
    return limits


def check(limit: Limit, value: float) -> Check:
    """Hold a measured value against a limit."""
    margin = limit.value - value if limit.bound == "<=" else value - limit.value
    allowance = abs(limit.value - limit.perfect)
    distance = abs(value - limit.perfect)
    used = distance / allowance if allowance else (0.0 if distance == 0 else None)
    return Check(limit.figure, limit.bound, limit.value, value, margin, used)


def limits_table() -> list[dict[str, Any]]:
    """All limits as plain data, for reports."""
    return [
        {"role": role, "precision": precision, "kind": kind, **asdict(limit)}
        for (role, precision, kind), limits in LIMITS.items()
        for limit in limits
    ]
