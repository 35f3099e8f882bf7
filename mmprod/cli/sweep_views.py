"""What `mmprod codec sweep` shows and writes: tables, reasons, sweep.json, plots and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprod.cli.output import Output, Table, Text, shown
from mmprod.cli.sweep import SweepJob, done, plan
from mmprod.config.load import load_config
from mmprod.manifest import write_json

if TYPE_CHECKING:
    from mmprod.evaluation.choose import Choice

COLUMNS = (
    "member", "fixed", "coded", "bpp", "PSNR", "SSIM", "MS-SSIM", "usage", "perp./K", "SNR",
    "weights", "s/step",
)  # fmt: skip


def show_plan(out: Output, job: SweepJob) -> None:
    """The members of a sweep and what training each would take."""
    from mmprod.evaluation.codec_quality import training_cost

    costs = [
        {"name": m.name, "codes": m.codes, **asdict(training_cost(m.config))} for m in plan(job)
    ]
    rows = [
        (c["name"], f"{c['codes']:,}", c["tokens"], f"{c['parameters']:,}", f"{c['steps']:,}",
         f"{c['pictures']:,}", f"{c['gflop']:,.0f}", f"{c['gflop'] * c['steps'] / 1000:,.1f}")
        for c in costs
    ]  # fmt: skip
    columns = (
        "member", "codes", "tokens", "parameters", "steps", "pictures seen", "GFLOP a step",
        "TFLOP in all",
    )  # fmt: skip
    total = sum(c["gflop"] * c["steps"] for c in costs) / 1000
    title = f"{len(costs)} members, {total:,.1f} TFLOP of training, nothing is trained"
    out.result({"members": costs}, Table(title, columns, rows))


def conclude(
    out: Output,
    job: SweepJob,
    records: Sequence[Mapping[str, Any]],
    worth: float | None,
    healthy: float | None,
) -> None:
    """Recommend one member, write everything, show it. `worth`, `healthy`: None for the rule's."""
    measured, failed = done(records), [r for r in records if r["status"] == "failed"]
    choice = _choose(measured, worth, healthy)
    written = _write(job, records, choice)
    result = {
        "out": job.out,
        "recommended": choice.name,
        "rule": choice.rule,
        "reasons": choice.reasons,
        "members": records,
        "files": written,
    }
    title = f"{job.name}: fixed and coded bits per token, coded bits per pixel, dB"
    words = [f"recommended: {choice.name or 'none'}", f"rule: {choice.rule}"]
    words += [f"  - {reason}" for reason in choice.reasons]
    words += [f"failed: {record['name']}: {record['error']}" for record in failed]
    words += [f"written: {', '.join(shown(path) for path in written)}"]
    out.result(result, Table(title, COLUMNS, _rows(measured)), Text("\n".join(words)))


def _choose(
    records: Sequence[Mapping[str, Any]], worth: float | None, healthy: float | None
) -> Choice:
    from mmprod.evaluation.choose import HEALTHY, WORTH, Candidate, choose

    candidates = [
        Candidate(r["name"], r["coded_bits"] * r["tokens"], r["tokens"], r["psnr"], r["usage"])
        for r in records
    ]
    return choose(
        candidates, WORTH if worth is None else worth, HEALTHY if healthy is None else healthy
    )


def _write(job: SweepJob, records: Sequence[Mapping[str, Any]], choice: Choice) -> list[Path]:
    """sweep.json, the plots and the page."""
    from mmprod.report.page import Grid
    from mmprod.report.sweep import SweepPage, write_sweep_page

    found = {"recommended": choice.name, "rule": choice.rule, "reasons": list(choice.reasons)}
    table = job.out / "sweep.json"
    write_json(table, {"kind": "codec sweep", "format": 1, **found, "members": list(records)})
    measured = done(records)
    side, name = records[0]["image_size"], load_config(job.name, job.overrides).name
    count = measured[0]["pictures"] if measured else 0
    page = SweepPage(
        title="Codec sweep",
        lead=f"{len(records)} codecs of the configuration {name}, trained alike on one data "
        f"set and measured on {count} validation pictures of {side} x {side} pixels.",
        area=side * side,
        records=measured,
        failed=[(str(r["name"]), str(r["error"])) for r in records if r["status"] == "failed"],
        recommended=choice.name,
        rule=choice.rule,
        reasons=choice.reasons,
        table=Grid(COLUMNS, tuple(_rows(measured))),
    )
    return [table, *write_sweep_page(job.out, page)]


def _rows(records: Sequence[Mapping[str, Any]]) -> list[tuple[object, ...]]:
    return [
        (
            r["name"],
            f"{r['fixed_bits']:.2f}",
            f"{r['coded_bits']:.2f}",
            f"{r['coded_bpp']:.4f}",
            f"{r['psnr']:.2f}",
            f"{r['ssim']:.3f}",
            f"{r['ms_ssim']:.3f}",
            _figure(r["usage"], "{:.1%}"),
            _figure(r["perplexity"], "{:.2f}", r["codes"]),
            _figure(r["snr"], "{:.2f}"),
            f"{r['parameters'] / 1e6:.2f} M",
            f"{r['seconds_per_step']:.3f}",
        )
        for r in records
    ]


def _figure(value: float | None, form: str, of: float = 1.0) -> str:
    return "not recorded" if value is None else form.format(value / of)
