"""How far a compiled graph may be from PyTorch in fp32, and why: one table, printed with every
report.

A limit belongs to a role and a precision, and is another one for samplers: there every step feeds
on the ids drawn before, so one id on the edge between two choices changes all that follows, in
both programs equally rightly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mmprod.errors import ConfigError
from mmprod.graphs.spec import Role
from mmprod.parity.compare import PSNR_CAP

Kind = Literal["plain", "sampler", "ranked", "joint"]
"""`ranked`: plain graphs whose reference also says how near each choice was (ties.py). `joint`: a
text that is drawn along with a picture, where a precision has limits of its own for that.
"""


@dataclass(frozen=True)
class Limit:
    """The largest (`bound` "<=") or smallest (">=") allowed value of a figure.

    `perfect`: its value for equal outputs. `spread`: what a mean over n samples may fall short in
    addition is `spread / sqrt(n)`, for figures that scatter from sample to sample. `loosest`: what
    the limit never goes beyond, however few the samples.
    """

    figure: str
    bound: Literal["<=", ">="]
    value: float
    reason: str
    perfect: float = 0.0
    spread: float = 0.0
    loosest: float | None = None

    def at(self, samples: int) -> float:
        """The limit for a mean over so many samples."""
        slack = self.spread / math.sqrt(max(samples, 1))
        if self.bound == "<=":
            border = self.value + slack
            return border if self.loosest is None else min(border, self.loosest)
        border = self.value - slack
        return border if self.loosest is None else max(border, self.loosest)


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


def _free(least: float, spread: float, loosest: float, reason: str) -> tuple[Limit, ...]:
    """The agreement of ids of a sampler, where one moved draw moves those after it."""
    return (Limit("agreement", ">=", least, reason, 1.0, spread, loosest),)


COARSE = ("bf16", "mixed", "int8", "fp8")
"""Precisions that move nearly every draw of a sampler."""

_SAME_IDS = _at_least(
    "agreement",
    1.0,
    "the same weights in the same precision must pick the same ids; rounding of about 1e-6 is far "
    "below the usual gap between the best and the second",
)

TIES: Mapping[str, tuple[float, str]] = {
    "fp32": (
        2e-5,
        "fp32 moves the features of a codec by 9.2e-6 of their length at most against fp64, in any "
        "order of the batch; doubled",
    ),
    "fp16": (1e-2, "half precision moves them by 7.9e-3 at most; rounded up"),
    "bf16": (1e-1, "bf16 moves them by 6.2e-2 at most; rounded up"),
    "mixed": (1e-1, "what is in int8 moves them as int8 does, the rest less"),
    "int8": (1e-1, "after 200 steps of training ids that moved needed 8.5e-3 at most; see below"),
    "fp8": (2e-1, "after 200 steps of training ids that moved needed 2.0e-2 at most; see below"),
}
"""The relative change of features up to which a differing id is a tie (see ties.py), and why.
Measured by tools/parity_floors.py on fresh codecs of configs/tiny.toml and configs/small.toml; tiny
measured a tenth of each after 200 steps of training, so fresh weights are the harder case.
"""

_SETTLED = _at_least(
    "settled",
    1.0,
    "no id may differ where the reference's choice was clear: a tie is what the precision's own "
    "error of the features explains, 2e-5 of their length in fp32, 1e-2 in fp16, 1e-1 in bf16",
)
_FEW_TIES = _at_least(
    "agreement",
    0.99,
    "fp32 moved none of 8,192 ids against fp64; one in a hundred is a fault, however near each was",
)
_HALF_TIES = _at_least(
    "agreement",
    0.98,
    "half precision moved 0.5 % of the ids at most; four times that is a fault, however near each "
    "was",
)

_MOST = _at_least("agreement", 0.8, "of a tiny codec 99 % stay in bf16, 93 % int8, 88 % fp8")
_BEARABLE: Mapping[tuple[Role, Kind], tuple[Limit, ...]] = {
    ("codes", "plain"): (_MOST,),
    ("codes", "ranked"): (_SETTLED, _MOST),
    ("codes", "sampler"): _free(
        0.35, 0.45, 0.25, "a tiny model measured 0.39 to 0.85, other noise 0.055; draws follow on"
    ),
    ("tokens", "sampler"): _free(
        0.8, 0.45, 0.76, "measured 0.77 to 1, other noise 0.75: fusion_step is the sharper check"
    ),
    ("pixels", "plain"): (
        _at_least("psnr", 40.0, "2.5 levels on average; measured 58, 50 and 44 dB", PSNR_CAP),
        _at_most("max_level", 24.0, "no spot may stand out; measured 1, 4 and 11 levels"),
    ),
    ("logits", "plain"): (
        _at_least("top1", 0.93, "a barely trained model hesitates everywhere and measured 0.96"),
        _at_most("kl_mean", 2e-3, "a draw moves with a chance of 3 % at most; measured 7.3e-4"),
        _at_most("kl_max", 5e-2, "a draw at any one position: 16 % at most; measured 4.4e-3"),
    ),
    ("embedding", "plain"): (
        _at_least("cosine", 0.998, "an angle of 3.6 degrees at most; measured 0.99898 in fp8"),
        _at_most("max_abs", 6.4e-2, "vectors of length 1 within that cosine differ by 6.4e-2"),
    ),
}
"""Of bf16, mixed, int8 and fp8: what a use of the graph bears. Measured on a tiny model."""

LIMITS: Mapping[tuple[Role, str, Kind], tuple[Limit, ...]] = {
    ("codes", "fp32", "plain"): (_SAME_IDS,),
    ("codes", "fp32", "ranked"): (_SETTLED, _FEW_TIES),
    ("codes", "fp32", "sampler"): (_SAME_IDS,),
    ("tokens", "fp32", "sampler"): (_SAME_IDS,),
    ("pixels", "fp32", "plain"): (
        _at_most(
            "max_level",
            1.0,
            "rounding to whole levels turns an error of 1e-6 beside a half into one level, not two",
        ),
    ),
    ("logits", "fp32", "plain"): (
        _at_most("max_abs", 1e-3, "reordered sums of float32 terms differ by some 1e-5"),
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
        _at_most(
            "max_abs",
            1e-5,
            "a cosine is blind to length: vectors must have length 1 too; a small trained model "
            "measured 1.5e-7",
        ),
    ),
    ("codes", "fp16", "plain"): (
        _at_least(
            "agreement",
            0.99,
            "half precision (relative error 5e-4) moves only features that lie between two codes",
        ),
    ),
    ("codes", "fp16", "ranked"): (_SETTLED, _HALF_TIES),
    ("codes", "fp16", "sampler"): (
        Limit(
            "agreement",
            ">=",
            0.8,
            "a draw moves when its random number lies within the error of half precision of a "
            "border between two ids, and later draws follow it: a small trained model measured "
            "0.91 to 0.97, with a deviation of 0.16 between samples, other noise 0.05; "
            "three standard errors are granted",
            1.0,
            0.6,
            0.7,
        ),
    ),
    ("tokens", "fp16", "sampler"): _free(
        0.96, 0.12, 0.9, "captions are nearly certain: measured 0.98 to 1, other noise 0.84"
    ),
    ("tokens", "fp16", "joint"): _free(
        0.93, 0.3, 0.78, "a moved draw moves the rest: measured 0.875 to 1, other noise 0.64"
    ),
    ("pixels", "fp16", "plain"): (
        _at_least("psnr", 50.0, "0.8 levels on average cannot be seen", PSNR_CAP),
        _at_most("max_level", 8.0, "no spot may stand out, however good the average"),
    ),
    ("logits", "fp16", "plain"): (
        _at_least(
            "top1", 0.98, "only positions that hesitate between two ids may change their mind"
        ),
        _at_most("kl_mean", 1e-4, "a draw moves with a chance of 0.7 % at most (Pinsker's bound)"),
        _at_most("kl_max", 1e-2, "a draw at any one position moves with a chance of 7 % at most"),
    ),
    ("embedding", "fp16", "plain"): (
        _at_least(
            "cosine", 1 - 1e-5, "a relative error of 4.5e-3, nine roundings of half precision"
        ),
        _at_most(
            "max_abs",
            5e-3,
            "vectors of length 1 within that cosine differ by 4.5e-3 at most; others have another "
            "length; a small trained model measured 1.3e-4",
        ),
    ),
    **{(role, p, kind): found for p in COARSE for (role, kind), found in _BEARABLE.items()},
}

PRECISIONS = tuple(dict.fromkeys(precision for _, precision, _ in LIMITS))


def tie_of(precision: str) -> float:
    """The relative change of features up to which a differing id is a tie; 0, no id ever is, for a
    precision without one.
    """
    return TIES[precision][0] if precision in TIES else 0.0


def kind_of(kind: Kind, role: Role, precision: str, ranked: bool) -> Kind:
    """`ranked` for a plain output of which it is known how near each choice was, where there are
    limits for that; `sampler` for a `joint` one without limits of its own.
    """
    if kind == "joint" and (role, precision, kind) not in LIMITS:
        return "sampler"
    known = ranked and kind == "plain" and (role, precision, "ranked") in LIMITS
    return "ranked" if known else kind


def limits_for(role: Role, precision: str, kind: Kind) -> tuple[Limit, ...]:
    """The limits of an output. Raises ConfigError for a precision or role that has none."""
    limits = LIMITS.get((role, precision, kind))
    if limits is None:
        raise ConfigError(
            f"no parity limits for {role} in {precision} ({kind} graphs)",
            hint=f"precisions with limits: {', '.join(PRECISIONS)}",
        )
    return limits


def check(limit: Limit, value: float, samples: int = 1) -> Check:
    """Hold a value measured over so many samples against a limit."""
    border = limit.at(samples)
    margin = border - value if limit.bound == "<=" else value - border
    allowance = abs(border - limit.perfect)
    distance = abs(value - limit.perfect)
    used = distance / allowance if allowance else (0.0 if distance == 0 else None)
    return Check(limit.figure, limit.bound, border, value, margin, used)


def limits_table() -> list[dict[str, Any]]:
    """All limits as plain data, for reports."""
    return [
        {"role": role, "precision": precision, "kind": kind, **asdict(limit)}
        for (role, precision, kind), limits in LIMITS.items()
        for limit in limits
    ]
