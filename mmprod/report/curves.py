"""The page of one training stage: its curves and its newest samples, out of the stage's folder.

It reads metrics.jsonl and samples/, knows no model, and draws whatever figures it finds: the known
ones in their groups, every other one of a log line as a loss term.
"""

from __future__ import annotations

from collections.abc import Iterable, KeysView, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmprod.checkpoint import layout
from mmprod.errors import IntegrityError
from mmprod.report.chart import DASHES, Curve, Point
from mmprod.report.metrics import read_metrics
from mmprod.report.page import DemoPage, Pixels, Section, write_demo_page

POINTS = 300
"""points of a series that are drawn; of more, means over equal stretches of steps"""
LEADING = ("loss", "encoder", "cross_modal", "reconstruction")
"""the losses of the design, drawn together; further terms follow in charts of their own"""
Group = Mapping[str, tuple[str, ...]]
"""charts by title, each with the figures in it"""

CODEBOOK: Group = {
    "Codebook usage (share of codes)": ("usage",),
    "Codebook perplexity (codes)": ("perplexity",),
    "Restarted codes per step": ("restarts",),
    "Quantization SNR (dB)": ("snr",),
}
ADVERSARY: Group = {
    "Generator and discriminator loss": ("generator", "discriminator"),
    "Mean logit of real and restored patches": ("real_logit", "fake_logit"),
    "Discriminator: share of patches judged rightly": ("accuracy",),
    "LeCAM term": ("lecam",),
}
QUALITY: Group = {
    "PSNR (dB)": ("psnr",),
    "SSIM": ("ssim",),
    "MS-SSIM": ("ms_ssim",),
    "Share of codes that occur": ("codes_used",),
}
COURSE: Group = {
    "Learning rate": ("lr",),
    "Gradient norm before clipping": ("grad_norm",),
    "Images per second": ("images_per_s",),
    "MFU: share of the devices' peak": ("mfu",),
    "Share of a step that waits for data": ("data_wait",),
    "Memory of the fullest rank (GB)": ("memory_bytes",),
    "Steps not learned from, between log lines": ("spikes", "skipped"),
}
SCALED = {"memory_bytes": 1e-9}
"""factor of a figure's values in its chart"""
SHARES, WHOLE = ("usage", "codes_used", "accuracy"), (0.0, 1.0)
"""drawn on an axis from 0 to 1, where being at 1 can be seen"""
NEITHER = (
    *("kind", "step", "seconds", "eta_s"),
    *("step_seconds", "tokens_per_s", "tflops", "peak_tflops"),  # images_per_s and mfu show them
)
"""keys of a line that are not drawn"""
SHOWN = {
    "codec": "Above pictures of the val split, below what their codes keep of them.",
    "fusion": "Above pictures drawn for captions of the val split, below the real ones.",
}


def write_curves(stage_folder: Path) -> Path:
    """Draw curves.html in a stage's folder from its other files, atomically. Returns its path.

    Raises IntegrityError when there is no metrics.jsonl, or it or a sample is broken, OSError when
    a file cannot be read or written.
    """
    records = read_metrics(stage_folder / layout.METRICS)
    logs = [record for record in records if record.get("kind") == "log"]
    evals = [record for record in records if record.get("kind") == "eval"]
    stage = stage_folder.name
    sections = (
        _samples(stage_folder),
        _losses(
            "Losses",
            "Training batches, means between log lines.",
            logs,
            (CODEBOOK, ADVERSARY, COURSE),
        ),
        _group("Codebook", CODEBOOK, logs),
        _group("Adversary", ADVERSARY, logs),
        _group("Quality on the val split", QUALITY, evals),
        _losses("Losses on the val split", "The averaged weights.", evals, (QUALITY,)),
        _group("Course", COURSE, logs),
    )
    path = stage_folder / layout.CURVES
    page = DemoPage(
        title=f"{stage_folder.resolve().parent.name}: training of the {stage}",
        lead=_lead(logs, evals),
        facts=tuple(_facts(logs, evals)),
        sections=tuple(s for s in sections if s.curves or s.picture is not None),
    )
    write_demo_page(path, page)
    return path


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most POINTS points: means over equal stretches, each at its end."""
    if len(points) <= POINTS:
        return list(points)
    edges = np.linspace(0, len(points), POINTS + 1).astype(int)
    values = np.asarray(points, dtype=np.float64)
    return [
        (float(values[high - 1, 0]), float(values[low:high, 1].mean()))
        for low, high in pairwise(edges)
    ]


def _samples(stage_folder: Path) -> Section:
    found = {
        int(number): path
        for path in (stage_folder / "samples").glob("step-*.png")
        if (number := path.stem.removeprefix("step-")).isdecimal()
    }
    if not found:
        return Section("Samples")
    step = max(found)
    try:
        with Image.open(found[step]) as image:
            picture: Pixels = np.asarray(image.convert("RGB"))
    except (SyntaxError, ValueError) as error:  # what Pillow raises, beside OSError
        raise IntegrityError(f"{found[step]} is no picture: {error}") from error
    text = SHOWN.get(stage_folder.name, "")
    return Section("Samples", f"Step {step}. {text}", picture=picture)


def _losses(
    title: str, text: str, records: Sequence[Mapping[str, Any]], known: Iterable[Group]
) -> Section:
    """The leading losses in one chart, the other terms a few at a time in further ones."""
    apart = {*NEITHER, *(name for group in known for names in group.values() for name in names)}
    names = [name for name in _names(records) if name not in apart]
    leading = [name for name in LEADING if name in names]
    further = [name for name in names if name not in leading]
    charts = [("in all and by name", leading)] if leading else []
    many = len(DASHES)
    parts = [further[i : i + many] for i in range(0, len(further), many)]
    charts += [("further terms", part) for part in parts]
    curves = (
        Curve(f"{title}, {what}", "step", series, log=_is_log(series))
        for what, chosen in charts
        if (series := {name.replace("_", " "): _points(records, name) for name in chosen})
    )
    return Section(title, text, curves=tuple(curves))


def _group(title: str, group: Group, records: Sequence[Mapping[str, Any]]) -> Section:
    """The charts of a group that have something to show."""
    found = _names(records)
    curves = (
        Curve(
            label,
            "step",
            {name.replace("_", " "): _points(records, name) for name in names if name in found},
            including=WHOLE if names[0] in SHARES else (),
        )
        for label, names in group.items()
        if found & set(names)
    )
    return Section(title, curves=tuple(curves))


def _names(records: Sequence[Mapping[str, Any]]) -> KeysView[str]:
    """Every key of the records, in the order of appearance."""
    return dict.fromkeys(name for record in records for name in record).keys()


def _points(records: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    scale = SCALED.get(name, 1.0)
    return thinned([(record["step"], scale * record[name]) for record in records if name in record])


def _is_log(series: Mapping[str, Sequence[Point]]) -> bool:
    """Losses fall by factors: a logarithmic axis, unless something is zero or negative."""
    return all(y > 0 for points in series.values() for _, y in points)


def _lead(logs: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]]) -> str:
    newest = max((record["step"] for record in (*logs, *evals)), default=0)
    return f"After {newest:,} optimizer steps. Drawn anew at every evaluation."


def _facts(
    logs: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]]
) -> Iterable[tuple[str, str]]:
    log, evaluated = (records[-1] if records else {} for records in (logs, evals))
    if "psnr" in evaluated:
        yield "PSNR on the val split", f"{evaluated['psnr']:.2f} dB"
    if "loss" in evaluated:
        yield "loss on the val split", f"{evaluated['loss']:.4g}"
    if "usage" in log:
        yield "codes in use", f"{log['usage']:.1%}"
    if "snr" in log:
        yield "quantization SNR", f"{log['snr']:.1f} dB"
    if "images_per_s" in log:
        yield "speed", f"{log['images_per_s']:.3g} images/s"
    if "mfu" in log:
        peak = log.get("peak_tflops", 0.0)
        yield "MFU", f"{log['mfu']:.1%} of {peak:.4g} TFLOP/s"
    if "seconds" in log:
        minutes, seconds = divmod(round(log["seconds"]), 60)
        yield "training time", f"{minutes} min {seconds} s"
