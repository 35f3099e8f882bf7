"""`mmprod train --dry-run`: the size of a job as it would be launched. Trains nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprod.cli.output import Output, Table, Text, View
from mmprod.cli.plan import WORLDS, base

if TYPE_CHECKING:
    from mmprod.config.schema import Config
    from mmprod.planning.memory import Layout, Offload

OFFLOADED = ("offload_param", "offload_optimizer")


def show_dry_run(out: Output, config: Config, stages: tuple[str, ...], job: Job) -> None:
    """The job as it would be launched: sizes, bytes of one rank by kind, network."""
    from mmprod.cli.deepspeed_view import deepspeed_view
    from mmprod.cli.plan_views import activation_line, kinds_table, memory_table, sizes_table
    from mmprod.planning.asked import Asked
    from mmprod.planning.report import (
        ESTIMATED,
        EXACT,
        activation_data,
        memory_row,
        memory_rows,
    )
    from mmprod.planning.sizes import sizes_of

    tables: list[Table] = []
    resolved: dict[str, Any] = {}
    if job.file is not None:
        resolved, tables = deepspeed_view(config, job.file, job.world, stages)
    data, title = base(out, config, stages, Asked(), fused=False)
    data["deepspeed"] = resolved or None
    worlds = tuple(sorted({*WORLDS, job.world}))
    views: list[View] = [sizes_table(title, data["stages"])]
    for stage in data["stages"]:
        name, layout = stage["stage"], job.layout(config, stage["stage"])
        sizes = sizes_of(config, name)
        micro = stage["batch"] // (job.world * layout.accumulation)
        stage["activations"] = activation_data(config, name, fused=False, weights=layout.weights)
        acts = stage["activations"]["checkpointing" if _again(config, name) else "plain"]
        bytes_of_pass = acts["fixed"] + micro * acts["per_sample"]
        row = memory_row(sizes, layout)
        backward = row["rest"] + sum(row["backward"].values()) + bytes_of_pass
        row["peak"] = max(row["peak"], backward)
        stage["job"] = {**row, "micro_batch": micro, "activation_bytes": bytes_of_pass}
        views.append(kinds_table(name, stage["job"], bytes_of_pass))
        if job.deepspeed is None:  # else the file has chosen, with buckets of its own
            asked = Asked(weights=layout.weights, offload="none")
            stage["memory"] = memory_rows(config, name, worlds, asked)
            views.append(memory_table(stage, stage["memory"]))
        views.append(Text(activation_line(stage)))
    out.result(data, *views, *tables, Text(f"exact: {EXACT}\nestimated: {ESTIMATED}"))


def _again(config: Config, stage: str) -> bool:
    return bool(getattr(config, f"{stage}_train").activation_checkpointing)


@dataclass(frozen=True)
class Job:
    """How `mmprod train` would run: number of ranks, the DeepSpeed file that was given."""

    world: int
    deepspeed: Path | None = None

    @property
    def file(self) -> Path | None:
        """The DeepSpeed file that training takes; None: plain PyTorch."""
        from mmprod.config.load import configs_dir

        if self.deepspeed is None and self.world > 1:
            return configs_dir() / "deepspeed" / "zero1.json"
        return self.deepspeed

    def layout(self, config: Config, stage: str) -> Layout:
        """Raises ConfigError where file, batch and ranks do not go together."""
        from mmprod.planning.memory import Layout
        from mmprod.training.deepspeed_config import read_deepspeed, resolve

        path = self.file
        if path is None:
            return Layout(None)
        cfg = getattr(config, f"{stage}_train")
        found = resolve(read_deepspeed(path), cfg, self.world)
        zero = found.config["zero_optimization"]
        on_host = {key: (zero.get(key) or {}).get("device") == "cpu" for key in OFFLOADED}
        offload: Offload = "none"
        if found.offload:
            offload = "optimizer+param" if on_host["offload_param"] else "optimizer"
        bucket = int(zero.get("reduce_bucket_size", 0)) or 1
        return Layout(
            found.stage,
            found.weights,
            offload,
            self.world,
            found.accumulation,
            bucket,
        )
