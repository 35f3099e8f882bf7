"""The maps of a report as one file of arrays beside it, and back: `reports/parity.npz`.

Keys are `SUBJECT/OUTPUT/PART`, PART one of heat, reference and candidate, and `report`: the SHA-256
of the report they belong to. Rows kept from earlier runs keep the maps of those runs.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from mmprod.bundle import Bundle
from mmprod.errors import IntegrityError
from mmprod.graphs.runner import Array
from mmprod.manifest import atomic_path, sha256_file
from mmprod.parity.merge import REPORT
from mmprod.parity.report import Row

ARRAYS = "reports/parity.npz"
_PARTS = ("heat", "reference", "candidate")

Maps = dict[tuple[str, str], dict[str, Array]]
"""by subject, as `str(Subject)`, and output: its arrays by part"""


def maps_of(rows: Sequence[Row], earlier: Maps) -> Maps:
    """The maps of these rows; those of `earlier` for rows that were not run this time."""
    found: Maps = {}
    for row in rows:
        for output in row.outputs:
            key = (str(row.subject), output.name)
            if output.heat is not None:
                arrays = (output.heat.values, *(output.heat.pair or ()))
                found[key] = dict(zip(_PARTS, arrays, strict=False))
            elif key in earlier:
                found[key] = earlier[key]
    return found


def write_maps(bundle: Bundle, maps: Maps) -> None:
    """Write the maps of the report that lies in the bundle and list them; `bundle.save()` is the
    caller's.
    """
    arrays: dict[str, Array] = {"report": np.array(sha256_file(bundle.root / REPORT))}
    for (subject, name), parts in maps.items():
        arrays |= {f"{subject}/{name}/{part}": array for part, array in parts.items()}
    path = bundle.root / ARRAYS
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)
    bundle.add(path, role="report")


def read_maps(bundle: Bundle) -> Maps:
    """What `write_maps` wrote; nothing when there is no such file or the report is another one
    by now. Raises IntegrityError for a file that differs from the manifest or cannot be read.
    """
    listed = [a for a in bundle.artefacts(role="report") if a.path in (ARRAYS, REPORT)]
    if len(listed) < 2:
        return {}
    bundle.verify(listed)
    path = bundle.root / ARRAYS
    found: Maps = {}
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            if str(archive["report"]) != sha256_file(bundle.root / REPORT):
                return {}
            for key in archive.files:
                if key != "report":
                    subject, name, part = key.split("/")
                    found.setdefault((subject, name), {})[part] = archive[key]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise IntegrityError(
            f"{path} cannot be read: {error}", hint="mmprod parity run BUNDLE writes it anew"
        ) from error
    return found
