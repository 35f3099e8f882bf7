"""How often attributes that were asked for are the attributes that were found (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmprod.data.attributes import HIDDEN, SCORED
from mmprod.errors import ConfigError


def attribute_agreement(
    wanted: Sequence[Mapping[str, str]],
    got: Sequence[Mapping[str, str]],
    names: Sequence[str] = SCORED,
) -> dict[str, float]:
    """The share in [0, 1] of wanted values that were found: per attribute, and "overall" over
    `names`.

    A wanted value that is hidden or absent is not scored; a found one that is absent is wrong.
    "overall" counts every scored value once. An attribute that was never scored is left out.
    Raises ConfigError when the lists differ in length or nothing at all can be scored.
    """
    if len(wanted) != len(got):
        raise ConfigError(
            f"{len(wanted)} wanted and {len(got)} found sets of attributes",
            hint="give one set of found attributes for each wanted one",
        )
    right = dict.fromkeys(names, 0)
    scored = dict.fromkeys(names, 0)
    for want, have in zip(wanted, got, strict=True):
        for name in names:
            if want.get(name, HIDDEN) != HIDDEN:
                scored[name] += 1
                right[name] += want[name] == have.get(name)
    if not any(scored.values()):
        raise ConfigError(
            f"none of {', '.join(names)} is visible in any sample",
            hint="agreement needs a data set with attributes, such as the generated avatars",
        )
    result = {name: right[name] / scored[name] for name in names if scored[name]}
    return result | {"overall": sum(right.values()) / sum(scored.values())}
