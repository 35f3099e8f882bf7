"""Which codec of a sweep to take: one rule, and its reasons in words. Torch-free.

1. Members whose codebook is used less than `healthy` are left out and named: their codes cost bits
   that buy nothing, and the fusion transformer would learn rows that never occur.
2. Of the rest, those on the upper convex hull of PSNR over coded bits are the candidates.
3. From the cheapest candidate, go on to the next as long as it buys at least `worth` dB for a
   further coded bit per token. Along a convex hull this price only falls, so the first step that
   is not worth it ends the walk.

A bit is a bit: where members have different numbers of tokens, a "bit per token" means as many bits
as the coarsest member has tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WORTH = 0.25
"""dB for a coded bit per token. In theory a bit for each token of D numbers buys 6.02 / D dB of the
latents' error: 0.75 dB at D = 8, of which this is a third."""
HEALTHY = 0.9


@dataclass(frozen=True)
class Candidate:
    """A trained member: coded bits and tokens of one picture, PSNR in dB, usage in [0, 1] or None
    where it was not recorded.
    """

    name: str
    bits: float
    tokens: int
    psnr: float
    usage: float | None


@dataclass(frozen=True)
class Choice:
    """The member to take (None: none is fit), the rule in words, and what decided."""

    name: str | None
    rule: str
    reasons: tuple[str, ...]


def choose(
    candidates: Sequence[Candidate], worth: float = WORTH, healthy: float = HEALTHY
) -> Choice:
    """Apply the rule at the head of this file."""
    rule = (
        f"of the codebooks used to {healthy:.0%} or more, the one from which on a further coded "
        f"bit per token buys less than {worth:g} dB"
    )
    fit = [c for c in candidates if c.usage is None or c.usage >= healthy]
    reasons = [
        f"{c.name} is left out: only {c.usage:.1%} of its codes are in use"
        for c in candidates
        if c.usage is not None and c not in fit
    ]
    if not fit:
        return Choice(None, rule, (*reasons, "no member is left to choose from"))
    hull, unit = _hull(fit), min(c.tokens for c in fit)
    for member in fit:
        if member not in hull:
            reasons.append(f"{member.name} is not on the front: {_beaten(member, hull)}")
    place = 0
    while place + 1 < len(hull):
        here, there = hull[place], hull[place + 1]
        bits = (there.bits - here.bits) / unit
        price = (there.psnr - here.psnr) / bits
        step = (
            f"{here.name} -> {there.name}: {bits:+.2f} coded bits per token buy "
            f"{there.psnr - here.psnr:+.2f} dB, {price:.2f} dB a bit"
        )
        if price < worth:
            reasons.append(f"{step}: not worth it")
            break
        reasons.append(f"{step}: worth it")
        place += 1
    else:
        reasons.append(
            f"{hull[place].name} is the largest on the front: a larger one might be worth it too"
            if len(fit) > 1
            else f"{hull[place].name} is the only one to choose from"
        )
    return Choice(hull[place].name, rule, tuple(reasons))


def _hull(fit: Sequence[Candidate]) -> list[Candidate]:
    """The upper convex hull of PSNR over bits, from the cheapest to the best, both rising."""
    hull: list[Candidate] = []
    for member in sorted(fit, key=lambda c: (c.bits, -c.psnr)):
        if hull and member.psnr <= hull[-1].psnr:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], member):
            hull.pop()
        hull.append(member)
    return hull


def _slope(a: Candidate, b: Candidate) -> float:
    return (b.psnr - a.psnr) / (b.bits - a.bits)


def _beaten(member: Candidate, hull: Sequence[Candidate]) -> str:
    for other in hull:
        if other.bits <= member.bits and other.psnr >= member.psnr:
            return f"{other.name} is at {other.psnr:.2f} dB with no more bits ({member.psnr:.2f})"
    return "its neighbours give more PSNR for the bits between them"
