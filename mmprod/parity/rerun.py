"""The last report's run again: what exactly was asked for, and what came out differently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmprod.bundle import Bundle
from mmprod.errors import ConfigError, IntegrityError
from mmprod.manifest import read_json
from mmprod.parity.limits import limits_table
from mmprod.parity.merge import REPORT, is_kept
from mmprod.parity.report import FORMAT, ParityReport
from mmprod.parity.worker import WORKER

Verdict = Literal["same", "new failure", "recovered", "changed", "figures moved", "new", "gone"]


@dataclass(frozen=True)
class Request:
    """How the last report came about. `live`: compared with a running PyTorch, whose name is
    `reference`, not with stored outputs.
    """

    precisions: tuple[str, ...]
    batches: tuple[int, ...]
    seeds: int
    reference: str
    rows: tuple[Mapping[str, Any], ...]
    limits: Any

    @property
    def live(self) -> bool:
        return self.seeds > 0

    @property
    def same_limits(self) -> bool:
        """Whether the limits have not changed since."""
        return bool(self.limits == limits_table())


@dataclass(frozen=True)
class Change:
    """One row then and now. `figures`: those that moved, by "output figure": before and after,
    None where there was none.
    """

    subject: str
    before: str
    after: str
    figures: dict[str, tuple[float | None, float | None]]
    files_changed: bool
    backends: tuple[str, str]
    """what ran it then and now, "" for nothing; by itself, not with what its worker gave up"""
    reason: str

    @property
    def backend_changed(self) -> bool:
        """Something else ran it, such as another version of the library."""
        return all(self.backends) and self.backends[0] != self.backends[1]

    @property
    def verdict(self) -> Verdict:
        if self.before == self.after:
            return "figures moved" if self.figures else "same"
        if self.after == "fail":
            return "new failure"
        if not self.before or not self.after:
            return "gone" if not self.after else "new"
        return "recovered" if self.before == "fail" and self.after == "pass" else "changed"


def last_request(bundle: Bundle) -> Request:
    """What the report in the bundle was made of.

    Raises ConfigError when there is none, IntegrityError when it differs from the manifest or is
    no report.
    """
    listed = [a for a in bundle.artefacts(role="report") if a.path == REPORT]
    if not listed:
        raise ConfigError(
            f"{bundle.root} holds no parity report to repeat", hint="mmprod parity run BUNDLE"
        )
    bundle.verify(listed)
    path = bundle.path(listed[0])
    data = read_json(path, hint="mmprod bundle verify BUNDLE")
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise IntegrityError(
            f"{path} is no parity report of format {FORMAT}", hint="mmprod parity run BUNDLE"
        )
    try:
        rows = tuple(data["rows"])
        own = [row for row in rows if not is_kept(row)]
        return Request(
            tuple(dict.fromkeys(row["precision"] for row in own)),
            tuple(data["batches"]),
            data["seeds"],
            data["reference"],
            rows,
            data["limits"],
        )
    except (KeyError, TypeError) as error:
        raise IntegrityError(
            f"{path} is malformed: {error!r}", hint="mmprod parity run BUNDLE"
        ) from error


def changes(request: Request, report: ParityReport) -> list[Change]:
    """Row by row, in the order of the new report; rows that are gone come last."""
    before = {_name(row): row for row in request.rows}
    after = {_name(row): row for row in (row.as_dict() for row in report.rows)}
    return [_change(name, before.get(name), after.get(name)) for name in {**after, **before}]


def _change(name: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Change:
    old, new = _figures(before), _figures(after)
    moved = {
        key: (old.get(key), new.get(key)) for key in {**new, **old} if old.get(key) != new.get(key)
    }
    files = [row["files"] if row else None for row in (before, after)]
    return Change(
        name,
        before["status"] if before else "",
        after["status"] if after else "",
        moved,
        before is not None and after is not None and files[0] != files[1],
        (_backend(before), _backend(after)),
        after["reason"] if after else "",
    )


def _backend(row: Mapping[str, Any] | None) -> str:
    return str(row["backend"]).partition(WORKER)[0] if row else ""


def _name(row: Mapping[str, Any]) -> str:
    return " ".join(filter(None, (row["leg"], row["graph"], row["precision"], row["target"])))


def _figures(row: Mapping[str, Any] | None) -> dict[str, float]:
    return {
        f"{output['name']} {figure}": value
        for output in (row["outputs"] if row else ())
        for figure, value in output["figures"].items()
    }
