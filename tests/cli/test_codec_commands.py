"""`mmprod codec sweep`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprod.config.load import load_config
from mmprod.errors import ConfigError, NumericsError

from .conftest import Mmprod


@pytest.fixture(scope="module")
def swept(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of two sizes."""
    from mmprod.cli.main import main

    folder = tmp_path_factory.mktemp("sweep")
    with pytest.raises(SystemExit) as done:
        main(["codec", "sweep", "-c", str(job), "--sizes", "8,16", "--dims", "4", "-q",
              "--steps", "2", "--healthy", "0", "--out", str(folder)])  # fmt: skip
    assert done.value.code in (0, None)
    return folder


def test_sweep_measures_every_member_and_writes_its_files(swept: Path) -> None:
    found = json.loads((swept / "sweep.json").read_text(encoding="utf-8"))
    names = [member["name"] for member in found["members"]]
    assert names == ["spherical-k8-d4-f4", "spherical-k16-d4-f4"]
    assert found["recommended"] in names
    assert found["reasons"]
    for member, bits in zip(found["members"], (3, 4), strict=True):
        assert member["status"] == "done"
        assert member["steps"] == 2
        assert member["fixed_bits"] == bits
        assert member["tokens"] == 16
        assert 0 < member["coded_bits"] < bits + 3
        assert 0 < member["psnr"] < 60
        assert 0 < member["usage"] <= 1
        assert 1 <= member["perplexity"] <= 2**bits
        assert member["seconds_per_step"] > 0
    assert ">K 8" in (swept / "rate-distortion.svg").read_text(encoding="utf-8")
    assert "perplexity / K" in (swept / "usage.svg").read_text(encoding="utf-8")
    assert f"| {found['recommended']} |" in (swept / "sweep.md").read_text(encoding="utf-8")
    page = (swept / "sweep.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert found["recommended"] in page


def test_sweep_goes_on_without_training_again(
    swept: Path, job: Path, mmprod: Mmprod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmprod.training.run.train", None)
    result = mmprod("codec", "sweep", "-c", job, "--sizes", "8,16", "--dims", "4", "--steps", 2,
                    "--healthy", 0, "--out", swept)  # fmt: skip
    assert result.code == 0, result.err
    assert result.err.count("finished before") == 2
    assert "recommended: spherical" in result.out
    assert "dB a bit" in result.out or "not on the front" in result.out


def test_sweep_refuses_a_folder_of_another_configuration(
    swept: Path, job: Path, mmprod: Mmprod
) -> None:
    result = mmprod("codec", "sweep", "-c", job, "--sizes", "8", "--dims", "4", "--steps", 3,
                    "--out", swept)  # fmt: skip
    assert result.code == 2
    assert "codec_train.steps (was 2, now 3)" in result.err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.image_size=32", "data.image_size (there 16, asked for 32)"),
        ("data.seed=1", "data.seed (there 0, asked for 1)"),
        ("data.count=60", "data.count (there 40, asked for 60)"),
        ("data.source=emoji", "data.source (there 'avatars', asked for 'emoji')"),
    ],
)
def test_sweep_refuses_the_data_of_another_configuration(
    swept: Path, job: Path, mmprod: Mmprod, override: str, words: str
) -> None:
    result = mmprod("codec", "sweep", "-c", job, "--sizes", "8", "--dims", "4", "--steps", 2,
                    "--out", swept, "-o", override)  # fmt: skip
    assert result.code == 2
    assert words in result.err
    assert f"--data {swept / 'data'}" in result.err


def test_sweep_refuses_an_override_that_the_given_data_contradicts(
    swept: Path, job: Path, mmprod: Mmprod, tmp_path: Path
) -> None:
    given = ("codec", "sweep", "-c", job, "--sizes", "8", "--dims", "4", "--out", tmp_path / "x")
    for way in (("--data", swept / "data"), ("-o", f"data.path={swept / 'data'}")):
        result = mmprod(*given, *way, "-o", "data.image_size=32")
        assert result.code == 2
        assert "data.image_size (there 16, asked for 32)" in result.err


def test_sweep_knows_the_folder_its_pictures_are_from(
    mmprod: Mmprod, job: Path, tmp_path: Path
) -> None:
    from mmprod.cli.members import Grid
    from mmprod.cli.output import Output
    from mmprod.cli.sweep import SweepJob, _shared_data

    def prepare(folder: Path) -> Path:
        keys = ("data.source=folder", f"data.path={folder}")
        grid = Grid((8,), (4,), ("spherical",))
        return _shared_data(Output(), SweepJob(str(job), keys, grid, tmp_path / "out", None, 4))

    for seed, name in enumerate(("first", "second")):
        (tmp_path / name).mkdir()
        noise = np.random.default_rng(seed).integers(0, 256, (30, 16, 16, 3)).astype(np.uint8)
        for number, picture in enumerate(noise):
            Image.fromarray(picture).save(tmp_path / name / f"{number}.png")
    assert prepare(tmp_path / "first") == prepare(tmp_path / "first")
    with pytest.raises(ConfigError, match=r"data\.path \(there '.*first', asked for '.*second'\)"):
        prepare(tmp_path / "second")


def test_sweep_refuses_nonsense_by_name_before_anything(
    job: Path, mmprod: Mmprod, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = mmprod("codec", "sweep", "-c", job, "--quantizers", "spherical,lfq,fsq", "--sizes",
                    "16,100", "--out", out)  # fmt: skip
    assert result.code == 2
    assert "lfq, 100 codes" in result.err
    assert "fsq, 16 codes" in result.err
    assert "spherical, " not in result.err
    assert not (out / "data").exists()
    assert mmprod("codec", "sweep", "--quantizers", "spheric", "--out", out).code == 2
    assert "no positive number" in mmprod("codec", "sweep", "--sizes", "16,x", "--out", out).err
    assert "powers of two" in mmprod("codec", "sweep", "--factors", "6", "--out", out).err


def test_dry_run_lists_members_and_cost(job: Path, mmprod: Mmprod, tmp_path: Path) -> None:
    data = mmprod("codec", "sweep", "-c", job, "--sizes", "16,256", "--dims", "4", "--quantizers",
                  "spherical,lfq,fsq,residual", "--factors", "4,8", "--dry-run", "--json",
                  "--out", tmp_path / "x", "--sizes", "256").json()  # fmt: skip
    names = {member["name"] for member in data["members"]}
    assert names == {
        f"{name}-f{factor}"
        for factor in (4, 8)
        for name in ("spherical-k256-d4", "lfq-k256-d8", "fsq-k240-d3", "residual-x2-k256-d4")
    }
    cost = {member["name"]: member for member in data["members"]}
    assert cost["residual-x2-k256-d4-f4"]["tokens"] == 32
    assert cost["spherical-k256-d4-f8"]["tokens"] == 4
    assert cost["spherical-k256-d4-f4"]["gflop"] > 0
    assert not (tmp_path / "x").exists()


def test_a_failing_member_is_reported_and_the_rest_goes_on(
    job: Path, swept: Path, mmprod: Mmprod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmprod.training import run as training

    whole = training.train

    def train(config: object, run: Path, **options: object) -> object:
        if run.name == "spherical-k16-d4-f4":
            raise NumericsError("codec: loss is NaN at step 1")
        return whole(config, run, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "train", train)
    arguments = ("codec", "sweep", "-c", job, "--sizes", "8,16", "--dims", "4", "--steps", 1,
                 "--data", swept / "data", "--out", tmp_path, "--json")  # fmt: skip
    data = mmprod(*arguments).json()
    assert [m["status"] for m in data["members"]] == ["done", "failed"]
    assert "NaN" in data["members"][1]["error"]
    assert "spherical-k16-d4-f4: codec: loss is NaN" in (tmp_path / "sweep.html").read_text("utf-8")
    again = mmprod(*arguments)
    assert "failed before; remove" in again.err


def test_a_sweep_in_which_all_fail_says_so(
    job: Path, swept: Path, mmprod: Mmprod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object, **__: object) -> None:
        raise NumericsError("codec: loss is NaN at step 1")

    monkeypatch.setattr("mmprod.training.run.train", train)
    result = mmprod("codec", "sweep", "-c", job, "--sizes", "8", "--dims", "4", "--data",
                    swept / "data", "--out", tmp_path)  # fmt: skip
    assert result.code == 7
    assert "all 1 members failed" in result.err


def test_members_change_nothing_but_quantizer_and_factor(job: Path) -> None:
    from mmprod.cli.members import Grid, members
    from mmprod.config.keys import flatten

    found = members(str(job), (), Grid((16,), (4,), ("spherical", "residual"), (2, 4, 8)))
    base = dict(flatten(load_config(str(job))))
    allowed = {"quantizer", "codebook_size", "code_dim", "books", "levels", "patch", "multipliers"}
    for member in found:
        changed = {k for k, v in flatten(member.config) if v != base[k]}
        assert {key.removeprefix("codec.") for key in changed} <= allowed
    assert {m.config.codec.factor for m in found} == {2, 4, 8}
    with pytest.raises(ConfigError, match="mean nothing"):
        members(str(job), (), Grid((16,), (4,), ("residual",), books=1))
