"""Everything that is refused before a file is rendered, by name, with what to do instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmprod.deploying.facts import Facts
from mmprod.deploying.options import Options
from mmprod.deploying.refusals_bundle import RULES as BUNDLE_RULES
from mmprod.deploying.refusals_cluster import RULES as CLUSTER_RULES
from mmprod.deploying.refusals_engines import RULES as ENGINE_RULES
from mmprod.deploying.rule import Asked, Rule
from mmprod.errors import ConfigError

RULES: tuple[Rule, ...] = (*BUNDLE_RULES, *ENGINE_RULES, *CLUSTER_RULES)
"""In the order in which they are asked: a rule may rely on those before it."""


def check(facts: Facts, options: Options, kinds: Sequence[str]) -> None:
    """Raise ConfigError for the first combination that cannot work; `error: NAME: what`."""
    for name, what, hint in refused(facts, options, kinds):
        raise ConfigError(f"{name}: {what}", hint=hint)


def refused(facts: Facts, options: Options, kinds: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Name, what does not fit, what to do, of each rule that does not hold."""
    asked = Asked(facts, options, frozenset(kinds))
    for rule in RULES:
        if rule.kinds & asked.kinds and (found := rule.find(asked)):
            yield rule.name, *found
