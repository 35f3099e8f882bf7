"""The self-test on a device: every graph and engine on the stored reference, without torch.

Its report, reports/selftest-DEVICE.json, says what ran: the device, its driver, the libraries, the
content of the bundle before, and the verdicts. It goes into the bundle, or to a file elsewhere so
that a signed bundle stays as it is; with a key it is signed.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmprod.bundle import Bundle
from mmprod.bundle.files import INDEX
from mmprod.bundle.signing import sign_file, signature_of
from mmprod.bundle.undo import put_back_on_failure
from mmprod.manifest import sha256_file, write_json
from mmprod.parity.report import ParityReport
from mmprod.parity.run import Comparison, Page, ParityEvent
from mmprod.runners import cuda
from mmprod.runners.cuda import Probe

FORMAT = 2
LIBRARIES = ("mmprod", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx")


@dataclass(frozen=True)
class Selftest:
    """What came of it: the verdicts, the report file and its signature, None without a key."""

    report: ParityReport
    device: Probe
    path: Path
    signature: Path | None


def run_selftest(
    bundle: Bundle,
    *,
    timeout_s: float,
    key: Path | None = None,
    output: Path | None = None,
    on_event: Callable[[ParityEvent], None] | None = None,
    page: Page | None = None,
) -> Selftest:
    """Compare in worker processes and write the report. `output`: where to, None for the bundle.

    In the bundle the parity report takes the verdicts, too, with its `page`; and a bundle that was
    written to has no signature any more. Raises as `Comparison.run` and `sign_file` do.
    """
    if key:
        _try_key(key)
    before = sha256_file(bundle.root / INDEX)
    device = cuda.find_device()
    comparison = Comparison(bundle, on_event=on_event, timeout_s=timeout_s, page=page)
    report = comparison.run() if output is None else comparison.compare()
    content = {
        "format": FORMAT,
        "bundle": bundle.name,
        "bundle_json_sha256": before,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "ok": report.ok,
        "device": asdict(device),
        "machine": machine(),
        "cases": reference_cases(bundle),
        "parity": report.as_dict(),
    }
    path = output or bundle.root / "reports" / f"selftest-{place_name(device)}.json"
    if output is not None:
        return Selftest(report, device, path, _write(path, content, key))
    names = [file.relative_to(bundle.root).as_posix() for file in (path, signature_of(path))]
    with bundle.writing(), put_back_on_failure(bundle.root, names):
        signature = _write(path, content, key)
        for file in filter(None, (path, signature)):
            bundle.add(file, role="report")
        if signature is None and signature_of(path).exists():
            bundle.remove(signature_of(path))  # of the report that this one replaces
        bundle.save()
    return Selftest(report, device, path, signature)


def reference_cases(bundle: Bundle) -> dict[str, str]:
    """The stored cases of a bundle, by which its graphs are judged: path and SHA-256."""
    return {artefact.path: artefact.sha256 for artefact in bundle.artefacts(role="reference")}


def machine() -> dict[str, Any]:
    """What the libraries and the processor are; nothing that names the machine or its owner."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "libraries": versions,
    }


def place_name(device: Probe) -> str:
    """Of the report: the device, e.g. `sm89-NVIDIA-RTX-4090`, or the processor when there is
    none.
    """
    words = [device.target, device.name] if device.found else ["cpu", platform.machine()]
    return re.sub(r"[^A-Za-z0-9_]+", "-", "-".join(words)).strip("-")[:100]


def _try_key(key: Path) -> None:
    """A key that cannot sign is told before the work, not after it. Raises as `sign_file` does."""
    with tempfile.TemporaryDirectory(prefix="mmprod-selftest-") as folder:
        sample = Path(folder) / "sample"
        sample.touch()
        sign_file(sample, key)


def _write(path: Path, content: dict[str, Any], key: Path | None) -> Path | None:
    """The report and, with a key, its signature beside it."""
    write_json(path, content)
    return sign_file(path, key) if key else None
