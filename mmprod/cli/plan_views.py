"""A plan as tables: one row per layout, few columns, so that 80 columns hold them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mmprod.cli.output import Table, megabytes

Data = dict[str, Any]
OFFLOAD = {"none": "", "optimizer": "optimizer", "optimizer+param": "all"}


def sizes_table(title: str, stages: Sequence[Data]) -> Table:
    """What each stage is."""
    columns = [_sizes(stage) for stage in stages]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    names = ("", *(stage["stage"] for stage in stages))
    return Table(title, names, rows, whole=names)


def _sizes(stage: Data) -> dict[str, str]:
    frozen = f" ({stage['frozen']:,} frozen)" if stage["frozen"] else ""
    known = stage["epochs"] is not None
    return {
        "parameters": f"{stage['parameters']:,}{frozen}",
        "global batch": f"{stage['batch']} ({stage['tokens']:,} tokens)",
        "steps": f"{stage['steps']:,}",
        "steps per epoch": f"{stage['steps_per_epoch']:,.1f}" if known else "unknown",
        "epochs": f"{stage['epochs']:,.1f}" if known else "unknown",
        "PFLOP per step": f"{stage['flops_per_step'] / 1e15:.4g}",
        "checkpoint, one process": megabytes(stage["checkpoint_bytes"]),
        "checkpoint, DeepSpeed": megabytes(stage["checkpoint_bytes_deepspeed"]),
    }


def memory_table(stage: Data, rows: Sequence[Data]) -> Table:
    """Bytes of one rank without activations: a row for each layout, a column for each number of
    GPUs.
    """
    worlds = sorted({row["world"] for row in rows})
    layouts: dict[tuple[Any, ...], dict[int, Data]] = {}
    for row in rows:
        layouts.setdefault((row["zero"], row["weights"], row["offload"]), {})[row["world"]] = row
    unit, factor = _unit(row["peak"] for row in rows)
    offloads = {OFFLOAD[row["offload"]] for row in rows} - {""}
    cells = []
    for (zero, weights, _), found in layouts.items():
        sizes = [_pair(found.get(world), factor) for world in worlds]
        largest = found.get(worlds[-1])
        sent = _in(largest["sent_bytes"], factor) if largest else ""
        cells.append(("none" if zero is None else zero, weights, *sizes, sent))
    names = ("ZeRO", "weights", *(f"{n:,} GPU{'s' * (n > 1)}" for n in worlds), "sent")
    title = (
        f"{stage['stage']}: {stage['parameters']:,} parameters; {unit} at rest / peak per rank, "
        "without activations" + "".join(f"; in host memory: {kind}" for kind in offloads)
    )
    return Table(title, names, cells, whole=("ZeRO", "weights", "sent"))


def _unit(sizes: Iterable[int]) -> tuple[str, float]:
    return ("GB", 1e9) if max(sizes, default=0) >= 1e9 else ("MB", 1e6)


def _pair(row: Data | None, factor: float) -> str:
    return " / ".join(_in(row[key], factor) for key in ("rest", "peak")) if row else ""


def _in(size: int, factor: float) -> str:
    return f"{size / factor:,.{2 if factor == 1e9 else 1}f}"


def activation_line(stage: Data) -> str:
    """What a micro-batch adds, and what the last column of the memory table says."""
    acts = stage["activations"]
    mark = " (set in this configuration)"
    again = stage["activation_checkpointing"]
    plain, recomputed = acts["plain"], acts["checkpointing"]
    fixed = acts["checkpointing" if again else "plain"]["fixed"]
    return (
        f"+ activations per sample: {megabytes(plain['per_sample'])} plain{mark * (not again)}, "
        f"{megabytes(recomputed['per_sample'])} checkpointing{mark * again}; "
        f"and {megabytes(fixed)} once"
    )


def kinds_table(name: str, row: Data, activation_bytes: int | None = None) -> Table:
    """One layout by kind."""
    cells = [(kind, "at rest", megabytes(size)) for kind, size in row["device"].items() if size]
    cells += [(kind, "host", megabytes(size)) for kind, size in row["host"].items() if size]
    for part in ("backward", "update"):
        cells += [(kind, part, megabytes(size)) for kind, size in row[part].items() if size]
    if activation_bytes is not None:
        cells.append(("activations", "backward (estimated)", megabytes(activation_bytes)))
    cells.append(("all", "at the higher peak", megabytes(row["peak"])))
    zero = "without DeepSpeed" if row["zero"] is None else f"ZeRO {row['zero']}"
    title = f"{name}: bytes of one of {row['world']} ranks, {zero}, {row['weights']} weights"
    names = ("kind", "when", "size")
    return Table(title, names, cells, whole=names)


def cluster_table(title: str, rows: Sequence[Data]) -> Table:
    """What each number of devices takes; a column only where it says something. GPUs times micro is
    the global batch.
    """
    cells = [_cluster(row) for row in rows if row["fits"]]
    names = [name for name in cells[0] if any(cell[name] for cell in cells)]
    whole = [name for name in names if name != "bound by"]
    return Table(title, names, [[cell[name] for name in names] for cell in cells], whole=whole)


def misfits(rows: Sequence[Data]) -> str:
    """Lines on the numbers of devices that do not do."""
    return "\n".join(
        f"{row['world']:,} GPUs: {row['reason']} -> {row['hint']}"
        for row in rows
        if not row["fits"]
    )


def _cluster(row: Data) -> dict[str, str]:
    share = row[f"{row['bottleneck']}_s"] / row["step_s"]
    return {
        "GPUs": f"{row['world']:,}",
        "ZeRO": f"{row['zero']} {row['weights']}",
        "offload": OFFLOAD[row["offload"]],
        "micro": f"{row['micro_batch']}x{row['accumulation']}",
        "memory": megabytes(row["peak"]),
        "step": _seconds(row["step_s"]),
        "hours": f"{row['hours']:,.1f}",
        "cost": "" if row["cost"] is None else f"{row['cost']:,.0f}",
        "bound by": f"{row['bottleneck']} {share:.0%}",
    }


def _seconds(time_s: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if time_s * factor >= 1:
            return f"{time_s * factor:.3g} {unit}"
    return f"{time_s * 1e6:.3g} us"
