"""`mmprod plan --measure`: the plan beside what this machine really takes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from mmprod.cli.output import Output, Table, Text, megabytes

if TYPE_CHECKING:
    from mmprod.config.schema import Config

BATCH = 16
FIGURES = (
    "micro-batch", "activations planned", "activations found", "off by", "step planned",
    "step found", "off by", "TFLOP/s", "MFU here",
)  # fmt: skip


def show_measured(out: Output, config: Config, stages: tuple[str, ...]) -> None:
    """Run a few steps of plain PyTorch on the CPU and print both columns."""
    from mmprod.planning.measure import measure_stage
    from mmprod.training.peak import measured_cpu

    rows, data = [], []
    for stage in stages:
        found = measure_stage(config, stage, BATCH)
        peak = measured_cpu(getattr(config, f"{stage}_train").precision, found.threads)
        mfu = found.tflops / peak.tflops
        data.append({**asdict(found), "peak_tflops": peak.tflops, "mfu": mfu})
        rows.append(
            (
                found.batch,
                megabytes(found.activation_planned),
                megabytes(found.activation_found),
                f"{found.activation_error:+.1%}",
                f"{found.step_planned_s:.3g} s",
                f"{found.step_found_s:.3g} s",
                f"{found.step_error:+.1%}",
                f"{found.tflops:.3g}",
                f"{mfu:.0%}",
            )
        )
    text = (
        f"a few steps of plain PyTorch on this CPU with {data[0]['threads']} threads; the "
        "step is planned from the speed at half the micro-batch"
    )
    names = ("", *stages)
    cells = [(name, *values) for name, *values in zip(FIGURES, *rows, strict=True)]
    out.result(
        {"config": config.name, "measured": data}, Table("", names, cells, whole=names), Text(text)
    )
