"""The account of a DeepSpeed file: what each key asks for, what becomes of it, and why."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mmprod.errors import ConfigError
from mmprod.training.deepspeed_file import AUTO, Json, leaves, place
from mmprod.training.deepspeed_keys import find


@dataclass(frozen=True)
class Decision:
    """`asked`: the file's value, None where it says nothing; `resolved`: what DeepSpeed gets, None
    where it gets nothing.
    """

    key: str
    asked: Any
    resolved: Any
    why: str

    @property
    def changed(self) -> bool:
        """Whether the file's own value, which is not "auto", is not what DeepSpeed gets."""
        return self.asked not in (None, AUTO) and self.asked != self.resolved


class Ledger:
    """Keys (dotted) are settled one by one; at the end every key of the file has a line."""

    def __init__(self, raw: Json) -> None:
        self.raw = raw
        self._asked = dict(leaves(raw))
        self._lines: dict[str, Decision] = {}

    def asked(self, key: str) -> Any:
        """The file's value, None where it says nothing."""
        return self._asked.get(key)

    def keys(self, prefix: str) -> list[str]:
        """The file's keys that are `prefix` or below it."""
        return [k for k in self._asked if k == prefix or k.startswith(f"{prefix}.")]

    def put(self, key: str, value: Any, why: str) -> None:
        """DeepSpeed gets `value`."""
        self._lines[key] = Decision(key, self.asked(key), value, why)

    def drop(self, key: str, why: str) -> None:
        """DeepSpeed gets nothing; a key that the file does not have gets no line."""
        if key in self._asked:
            self._lines[key] = Decision(key, self.asked(key), None, why)

    def settle(self, key: str, ours: Any, name: str, *, passed: bool = True) -> None:
        """The setting `name` of the training section decides; the file may say "auto" or the same.

        `passed`: DeepSpeed gets it. Raises ConfigError naming both.
        """
        theirs = self.asked(key)
        if theirs not in (None, AUTO) and not _same(theirs, ours):
            raise self.error(
                key,
                f"the training section says {name} = {json.dumps(ours)}",
                hint=f'write "auto" for {key} in the DeepSpeed file, or change {name}',
            )
        if passed:
            self.put(key, ours, f"{name} of the training section")
        else:
            verb = "is" if theirs == AUTO else "agrees with"
            self.drop(key, f"{verb} {name} = {json.dumps(ours)} of the training section")

    def fix(self, key: str, ours: Any, what: str, *, passed: bool = True) -> None:
        """No setting decides `what` the key means, it is always `ours`; else as `settle`."""
        theirs = self.asked(key)
        said = f"{what} = {json.dumps(ours)} is fixed here"
        if theirs not in (None, AUTO) and not _same(theirs, ours):
            raise self.error(key, said, hint=f'write "auto" for {key} or remove it')
        if passed:
            self.put(key, ours, said)
        else:
            self.drop(key, said)

    def default(self, key: str, value: Any, why: str) -> None:
        """The file decides; absent or "auto" means `value`."""
        theirs = self.asked(key)
        if theirs in (None, AUTO):
            self.put(key, value, why)
        else:
            self.put(key, _whole(key, theirs), "as written")

    def only(self, key: str, value: Any, why: str) -> None:
        """Nothing but `value` is possible, which is DeepSpeed's default. Raises ConfigError."""
        theirs = self.asked(key)
        if theirs not in (None, AUTO, value):
            raise self.error(key, "it cannot be used here", hint=why)
        self.drop(key, "DeepSpeed's default, and the only value that works here")

    def error(self, key: str, message: str, *, hint: str) -> ConfigError:
        """An error that names the place, the key and its value if it has one."""
        said, where = self.asked(key), place(self.raw, key)
        about = f"{key} = {json.dumps(said)}" if said is not None else key
        return ConfigError(f"{where}: {about}: {message}", hint=hint)

    def finish(self) -> tuple[Json, tuple[Decision, ...]]:
        """What DeepSpeed gets, and the table, in the file's order. Raises ConfigError for an "auto"
        without a meaning.
        """
        for key, value in self._asked.items():
            if key in self._lines:
                continue
            entry = find(key)
            if value != AUTO:
                self.put(key, _whole(key, value), "as written")
            elif entry is not None and entry.default is not None:
                self.put(key, entry.default, "DeepSpeed's default")
            else:
                raise self.error(
                    key,
                    '"auto" has no meaning for it, nothing else decides it',
                    hint="write a value or remove it",
                )
        order = [*self._asked, *(key for key in self._lines if key not in self._asked)]
        table = tuple(self._lines[key] for key in order)
        return _nested({d.key: d.resolved for d in table if d.resolved is not None}), table


def _same(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, list):
        return list(theirs) == list(ours)
    return bool(theirs == ours)


def _whole(key: str, value: Any) -> Any:
    """1e9 -> 1000000000 where a whole number is meant."""
    entry = find(key)
    whole = entry is not None and entry.kind in ("count", "size", "stage")
    return int(value) if whole else value


def _nested(flat: Json) -> Json:
    out: Json = {}
    for path, value in flat.items():
        *sections, name = path.split(".")
        section = out
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return out
