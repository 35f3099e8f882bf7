"""`mmprod plan`: how large a job is, where it fits and what it takes. Trains nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmprod.cli.command import Overrides
from mmprod.cli.output import Output, Text, View, shown
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    from mmprod.config.schema import Config
    from mmprod.planning.asked import Asked
    from mmprod.planning.cluster import Cluster
    from mmprod.planning.memory import Offload

Model = Literal["codec", "fusion", "all"]
Data = dict[str, Any]
WORLDS = (1, 2, 8, 64)
LARGEST = 4096
OFFLOADS: dict[str, Offload] = {
    "none": "none", "optimizer": "optimizer", "all": "optimizer+param",
}  # fmt: skip


def plan(
    out: Output,
    config: Annotated[
        str, typer.Option("--config", "-c", metavar="NAME|PATH", help="Preset or TOML file.")
    ] = "tiny",
    override: Overrides = None,
    model: Annotated[Model, typer.Option(help="Which stage.")] = "all",
    cluster: Annotated[
        str,
        typer.Option(metavar="NAME|PATH", help="Machines: a100-80, h100, ... or a TOML file."),
    ] = "",
    gpus: Annotated[
        str, typer.Option(metavar="1,8,64", help="Numbers of GPUs; all of the cluster's if absent.")
    ] = "",
    stage: Annotated[
        int | None, typer.Option(min=0, max=3, help="ZeRO stage; the smallest that fits if absent.")
    ] = None,
    weights: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        typer.Option(help="What DeepSpeed keeps weights in; what precision implies if absent."),
    ] = None,
    offload: Annotated[
        Literal["none", "optimizer", "all"] | None,
        typer.Option(help="What lies in host memory; all: optimizer and weights."),
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Samples per pass; the most that fit if absent.")
    ] = None,
    grow_batch: Annotated[
        bool, typer.Option("--grow-batch", help="Larger global batch where there are more GPUs.")
    ] = False,
    mfu: Annotated[float | None, typer.Option(help="Share of the peak that is reached.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Per GPU and hour.")] = None,
    write: Annotated[
        Path | None, typer.Option(metavar="ds.json", help="Write the DeepSpeed file (one stage).")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run some passes here and compare with the plan.")
    ] = False,
) -> None:
    """Memory, network, time and cost of a job on 1 to 4,096 GPUs, before anything is rented."""
    from mmprod.config.load import load_config
    from mmprod.planning.asked import Asked
    from mmprod.planning.cluster import load_cluster

    resolved = load_config(config, override or ())
    stages = ("codec", "fusion") if model == "all" else (model,)
    machines_only = {
        "--micro-batch": micro_batch is not None, "--grow-batch": grow_batch,
        "--mfu": mfu is not None, "--price": price is not None, "--write": write is not None,
    }  # fmt: skip
    if measure:
        layouts = {
            "--cluster": bool(cluster), "--gpus": bool(gpus), "--stage": stage is not None,
            "--weights": weights is not None, "--offload": offload is not None,
        }  # fmt: skip
        _refuse(layouts | machines_only, "with --measure, which trains here", "leave them out")
        from mmprod.cli.plan_measure import show_measured
        from mmprod.training.allocator import keep_freed_memory

        keep_freed_memory()
        show_measured(out, resolved, stages)
        return
    asked = Asked(weights, stage, OFFLOADS[offload] if offload else None, grow_batch, micro_batch)
    asked.check(resolved, stages)
    machines = load_cluster(cluster, mfu=mfu, price_per_gpu_hour=price) if cluster else None
    worlds = _worlds(gpus, machines)
    if machines is None:
        hint = "add --cluster h100 (or a file, see docs/planning.md)"
        _refuse(machines_only, "without --cluster: they need to know the machines", hint)
        _show_sizes(out, resolved, stages, worlds, asked)
        return
    asked.check_optimizer(resolved, stages)
    _Projection(resolved, stages, worlds, machines, asked).show(out, write)


def _refuse(given: dict[str, bool], why: str, hint: str) -> None:
    """Options that would do nothing. Raises ConfigError."""
    if names := [name for name, there in given.items() if there]:
        raise ConfigError(f"{', '.join(names)}: no effect {why}", hint=hint)


def _worlds(text: str, cluster: Cluster | None) -> tuple[int, ...]:
    """Numbers of devices. Raises ConfigError."""
    if not text:
        return WORLDS if cluster is None else (cluster.gpus,)
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise ConfigError(
            f"--gpus {text!r} is no list of numbers", hint="for example --gpus 1,8,64"
        ) from error
    for number in found:
        if not 1 <= number <= LARGEST:
            raise ConfigError(
                f"--gpus {number}: a plan is for 1 to {LARGEST} GPUs", hint="--gpus 1,8,64,512,4096"
            )
    return found


def base(
    out: Output, config: Config, stages: tuple[str, ...], asked: Asked, *, fused: bool
) -> tuple[Data, str]:
    """What no cluster changes, and a title."""
    from mmprod.planning.report import activation_data, stage_data, training_samples

    samples, source = training_samples(config)
    found = []
    for stage in stages:
        out.note(f"counting what {stage} takes ...")
        weights = asked.weights_for(getattr(config, f"{stage}_train"))
        acts = activation_data(config, stage, fused=fused, weights=weights)
        found.append({**stage_data(config, stage, samples), "activations": acts})
    data = {
        "config": config.name,
        "samples": samples,
        "samples_from": source,
        "stages": found,
    }
    known = f"{samples:,} training pictures, {source}" if samples else source
    return data, f"{config.name}: {known}"


def _show_sizes(
    out: Output, config: Config, stages: tuple[str, ...], worlds: tuple[int, ...], asked: Asked
) -> None:
    from mmprod.cli.plan_views import activation_line, memory_table, sizes_table
    from mmprod.planning.report import ESTIMATED, EXACT, memory_rows

    data, title = base(out, config, stages, asked, fused=True)
    views: list[View] = [sizes_table(title, data["stages"])]
    listed = asked if asked.offload else replace(asked, offload="none")
    for stage in data["stages"]:
        rows = stage["memory"] = memory_rows(config, stage["stage"], worlds, listed)
        views += [memory_table(stage, rows), Text(activation_line(stage))]
    views.append(
        Text(
            f"sent: by one rank per step, in the unit of the table, at {worlds[-1]:,} GPUs\n"
            f"exact: {EXACT}\nestimated: {ESTIMATED}\n"
            "what fits where: --cluster h100; in host memory: --offload optimizer"
        )
    )
    out.result(data, *views)


@dataclass(frozen=True)
class _Projection:
    """A job on described machines."""

    config: Config
    stages: tuple[str, ...]
    worlds: tuple[int, ...]
    cluster: Cluster
    asked: Asked

    def show(self, out: Output, write: Path | None) -> None:
        from mmprod.cli.plan_views import cluster_table, kinds_table, misfits, sizes_table
        from mmprod.planning.report import ESTIMATED, EXACT, cluster_rows

        data, title = base(out, self.config, self.stages, self.asked, fused=self.cluster.fused)
        data["cluster"] = self.cluster.model_dump()
        views: list[View] = [sizes_table(title, data["stages"])]
        for stage in data["stages"]:
            name = stage["stage"]
            rows = cluster_rows(self.config, name, self.worlds, self.cluster, self.asked)
            stage["cluster"] = rows
            if any(row["fits"] for row in rows):
                views.append(cluster_table(f"{name} on {self.cluster.name}", rows))
            views += [Text(lines)] if (lines := misfits(rows)) else []
            if len(rows) == 1 and rows[0]["fits"]:
                views.append(kinds_table(name, rows[0], rows[0]["activation_bytes"]))
        if write is not None:
            self._write(write, data)
            views.append(Text(f"written: {shown(write)}"))
        cluster = self.cluster
        data["assumed"] = {
            "mfu": cluster.mfu, "link_share": cluster.link_share, "usable": cluster.usable,
        }  # fmt: skip
        views.append(
            Text(
                f"exact: {EXACT}\nestimated: {ESTIMATED}\n"
                f"assumed: MFU {cluster.mfu:.0%} of {self._peaks(data)}, "
                f"{cluster.link_share:.0%} of {cluster.intra_gb_s:g} GB/s within and "
                f"{cluster.inter_gb_s:g} between nodes, {cluster.usable:.0%} of "
                f"{cluster.memory_gb:g} GB; data loading, evaluation and saves take no time\n"
                f"figures of the machines: {cluster.source or 'the user'}"
            )
        )
        out.result(data, *views)

    def _peaks(self, data: Data) -> str:
        """The peak that each stage's precision has."""
        return ", ".join(
            f"{self.cluster.tflops(stage['precision']):g} {stage['precision']} TFLOP/s "
            f"({stage['stage']})"
            for stage in data["stages"]
        )

    def _write(self, path: Path, data: Data) -> None:
        """The DeepSpeed file of the one stage and number of devices. Raises ConfigError."""
        from mmprod.manifest import write_text
        from mmprod.planning.deepspeed_file import deepspeed_file
        from mmprod.planning.memory import Layout
        from mmprod.training.deepspeed_config import resolve

        rows = [row for stage in data["stages"] for row in stage["cluster"]]
        if len(rows) != 1:
            raise ConfigError(
                "--write is for one stage and one number of GPUs",
                hint="add --model codec or --model fusion, and --gpus N",
            )
        row = rows[0]
        if not row["fits"]:
            raise ConfigError(f"nothing to write: {row['reason']}", hint=row["hint"])
        layout = Layout(
            row["zero"], row["weights"], row["offload"], row["world"], row["accumulation"]
        )
        content = deepspeed_file(layout, row["micro_batch"])
        cfg = getattr(self.config, f"{self.stages[0]}_train")
        resolve(content, cfg.model_copy(update={"batch": row["batch"]}), row["world"])
        write_text(path, json.dumps(content, indent=2) + "\n")
