"""A self-test report that a device sent: by whom, of which files, and does it suffice?

The signature says whose device wrote it; the hashes in its rows, whether it speaks of the files of
this bundle, judged by its stored cases and by the limits of this version; its verdicts, whether
every engine that this bundle holds for the device passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprod.bundle import Bundle
from mmprod.bundle.signing import Signer, verify_file
from mmprod.bundle.strict import strict_json
from mmprod.errors import EnvironmentMissing, IntegrityError, ParityFailed
from mmprod.parity.candidates import target_of
from mmprod.parity.limits import limits_table
from mmprod.parity.merge import is_kept
from mmprod.parity.selftest import FORMAT, reference_cases

_HINT = "was it written by `mmprod parity selftest`, with this version?"
_OTHER = "is it of another bundle, or of this one before it was built anew?"


@dataclass(frozen=True)
class Accepted:
    """A report as its signer wrote it. `engines`: those of the bundle for its device, by path."""

    signer: Signer
    made_at: str
    device: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    engines: tuple[str, ...]


def accept(path: Path, bundle: Bundle, public_keys: Sequence[Path]) -> Accepted:
    """Read a report and hold it against the bundle.

    Raises IntegrityError for a signature by none of these keys, for what is no report, and for one
    of other files, cases or limits; ParityFailed when something failed on the device;
    EnvironmentMissing when it ran no engine, or not all that the bundle holds for it.
    """
    signer, data = verify_file(path, public_keys)
    content = strict_json(data, path, hint=_HINT)
    try:
        if content["format"] != FORMAT:
            raise IntegrityError(f"{path} has format {content['format']!r}", hint=_HINT)
        rows, limits = tuple(content["parity"]["rows"]), content["parity"]["limits"]
        cases = content["cases"]
        seen = {entry["path"]: entry["sha256"] for row in rows for entry in row["files"]}
        good = [row for row in rows if row["status"] == "pass" and not is_kept(row)]
        passed = {entry["path"] for row in good for entry in row["files"]}
        failed = [f"{row['leg']} {row['graph']}: {row['reason']}" for row in rows if _bad(row)]
        device, made_at = content["device"], str(content["made_at"])
        name = f"{device['name'] or 'no device'} ({device['target'] or device['reason']})"
        target = str(device["target"])
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} is malformed: {error!r}", hint=_HINT) from error
    _of_this_bundle(path, bundle, seen)
    if cases != reference_cases(bundle):
        raise IntegrityError(
            f"{path} was judged by other cases than {bundle.root} holds", hint=_OTHER
        )
    if limits != limits_table():
        raise IntegrityError(f"{path} was judged by other limits than those of today", hint=_HINT)
    if failed:
        raise ParityFailed(f"{name}: {failed[0]}", hint=f"{len(failed)} failed, see {path}")
    engines = tuple(
        artefact.path
        for artefact in bundle.artefacts(role="engine")
        if target and target_of(artefact).rpartition("-")[2] == target
    )
    missing = [path for path in engines if path not in passed]
    if missing or not engines:
        what = f"{missing[0]} was not run" if missing else "no engine of this bundle is for it"
        raise EnvironmentMissing(
            f"{name}: {what}", hint="on the device: mmprod parity selftest BUNDLE"
        )
    return Accepted(signer, made_at, device, rows, engines)


def _bad(row: Mapping[str, Any]) -> bool:
    return row["status"] not in ("pass", "not run")


def _of_this_bundle(path: Path, bundle: Bundle, seen: Mapping[str, str]) -> None:
    known = {artefact.path: artefact.sha256 for artefact in bundle.artefacts()}
    strange = [name for name, digest in seen.items() if known.get(name) != digest]
    if strange or not seen:
        what = f"of another {strange[0]} than" if strange else "of nothing that"
        raise IntegrityError(f"{path} speaks {what} {bundle.root} holds", hint=_OTHER)
