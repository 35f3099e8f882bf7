"""`mmprod plan` and the dry run: what they print, refuse and write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprod.cli.output import Output, Table
from mmprod.config.load import load_config
from mmprod.config.train import TrainConfig
from mmprod.planning.report import training_samples
from mmprod.training.deepspeed_config import read_deepspeed, resolve

from .conftest import Mmprod


def test_dry_run_trains_nothing(
    mmprod: Mmprod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    data = mmprod(
        "train", "--dry-run", "-c", job, "--model", "codec", "--nproc", 2, "--json"
    ).json()
    assert list(tmp_path.iterdir()) == []
    (codec,) = data["stages"]
    assert codec["job"]["zero"] == 1 and codec["job"]["world"] == 2
    assert codec["job"]["peak"] > codec["job"]["rest"] > 0
    assert data["deepspeed"]["stages"]["codec"]["table"]
    assert {row["world"] for row in codec["memory"]} == {1, 2, 8, 64}


def test_dry_run_tells_what_each_deepspeed_key_becomes(mmprod: Mmprod, job: Path) -> None:
    zero3 = "configs/deepspeed/zero3-offload.json"
    text = mmprod("train", "--dry-run", "-c", job, "--deepspeed", zero3, "--model", "codec").out
    assert "ZeRO 3" in text and "DeepSpeed gets" in text
    assert "host" in text and "activations" in text


def test_a_batch_that_cannot_be_shared_out_is_refused(mmprod: Mmprod, job: Path) -> None:
    result = mmprod("train", "--dry-run", "-c", job, "--nproc", 3)
    assert result.code == 2 and "batch" in result.err and "hint:" in result.err


def test_samples_are_counted_where_data_is_prepared(run: Path) -> None:
    drawn = load_config("tiny", ["data.count=100"])
    assert training_samples(drawn) == (90, "to be drawn")
    prepared = load_config("tiny", [f"data.path={run / 'data'}"])
    assert training_samples(prepared)[0] == 36
    assert training_samples(load_config("base"))[0] is None


def test_a_projection_for_one_to_thousands(mmprod: Mmprod, job: Path) -> None:
    arguments = ("plan", "-c", job, "--cluster", "h100", "--gpus", "1,4096", "--price", 2)
    arguments += ("--model", "fusion")
    data = mmprod(*arguments, "--grow-batch", "--json").json()
    one, many = data["stages"][0]["cluster"]
    assert one["fits"] and one["zero"] == 0 and one["hours"] > 0 and one["cost"] > 0
    assert many["batch"] == 4096 * 8 and many["network_s"] > 0
    assert data["cluster"]["tflops_bf16"] == 989
    refused = mmprod(*arguments).out
    assert "cannot be shared out" in refused and "-o fusion_train.batch=32768" in refused
    assert "assumed: MFU 35%" in refused and "exact:" in refused and "data sheet" in refused


def test_the_deepspeed_file_that_is_written_is_taken(
    mmprod: Mmprod, job: Path, tmp_path: Path
) -> None:
    path = tmp_path / "ds.json"
    written = mmprod(
        "plan", "-c", job, "--model", "codec", "--cluster", "l4", "--gpus", 2, "--stage", 2,
        "--weights", "bf16", "--write", path, "-o", "codec_train.precision=bf16",
    )  # fmt: skip
    assert written.code == 0 and "written" in written.out, written.err
    content = json.loads(path.read_text())
    assert content["zero_optimization"]["stage"] == 2 and content["bf16"]["enabled"] is True
    cfg = TrainConfig(batch=4, precision="bf16")
    assert resolve(read_deepspeed(path), cfg, 2).weights == "bf16"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--gpus", "0"), "1 to 4096"),
        (("--gpus", "8192"), "1 to 4096"),
        (("--gpus", "many"), "no list of numbers"),
        (("--price", "2"), "--price: no effect without --cluster"),
        (("--micro-batch", "7", "--grow-batch"), "--micro-batch, --grow-batch: no effect"),
        (("--measure", "--stage", "3"), "--stage: no effect with --measure"),
        (("--weights", "fp16"), "takes fp32 weights, not fp16"),
        (("--stage", "1", "--offload", "all"), "takes no offload"),
        (("--cluster", "h101"), "no cluster"),
        (("--cluster", "h100", "--gpus", "1,2", "--write", "x.json"), "one number of GPUs"),
    ],
)
def test_nonsense_is_refused(
    mmprod: Mmprod, job: Path, arguments: tuple[str, ...], says: str
) -> None:
    result = mmprod("plan", "-c", job, *arguments)
    assert result.code == 2 and says in result.err and "hint:" in result.err


def test_without_a_cluster_every_layout_is_listed(mmprod: Mmprod, job: Path) -> None:
    data = mmprod("plan", "-c", job, "--model", "codec", "--gpus", "2", "--json").json()
    rows = data["stages"][0]["memory"]
    layouts = {(row["zero"], row["weights"], row["offload"]) for row in rows}
    assert layouts == {(zero, "fp32", "none") for zero in range(4)}
    only = ("--offload", "all", "-o", "codec_train.precision=bf16", "--json")
    data = mmprod("plan", "-c", job, "--model", "codec", "--gpus", "2", *only).json()
    rows = data["stages"][0]["memory"]
    assert {(r["zero"], r["weights"]) for r in rows} == {(3, "fp32"), (3, "bf16")}


def test_eighty_columns_hold_every_table(
    mmprod: Mmprod, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ("plan", "-c", job, "--model", "fusion", "-o", "fusion_train.precision=bf16")
    sizes = mmprod(*arguments)
    assert "3      bf16 " in sizes.out and "counting" in sizes.err
    assert "plain (set in this configuration)" in sizes.out
    priced = mmprod(*arguments, "--cluster", "h100", "--gpus", "1,2", "--price", "2").out
    assert "compute 100%" in priced and "cost" in priced
    assert "cost" not in mmprod(*arguments, "--cluster", "h100", "--gpus", "1").out
    assert "989 bf16 TFLOP/s (fusion)" in priced


def test_measuring_here_reports_both(mmprod: Mmprod, job: Path) -> None:
    data = mmprod("plan", "-c", job, "--model", "fusion", "--measure", "--json").json()
    row = data["measured"][0]
    assert row["activation_planned"] == pytest.approx(row["activation_found"], rel=0.05)
    assert row["step_found_s"] > 0 and row["step_planned_s"] > 0 and row["mfu"] > 0


def test_a_whole_column_is_never_cut_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    names = ("first", "second", "third")
    row = ("1,234,567.8", "23,456,789.0", "345,678,901.2")
    Output().result({}, Table("", names, [row], whole=names))
    printed = capsys.readouterr().out
    assert all(cell in printed for cell in row)
