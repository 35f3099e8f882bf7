"""Whole weights and optimizer state out of step folders, whoever wrote them."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mmprod.checkpoint.choose import choose_step
from mmprod.checkpoint.consolidate import consolidate, open_step
from mmprod.checkpoint.convert import convert
from mmprod.checkpoint.models import load_weights
from mmprod.config.load import to_toml
from mmprod.errors import ConfigError, IntegrityError
from mmprod.models.codec import build_codec
from mmprod.training.loop import train_stage
from tests.training.tiny import make_job, tiny_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=["codec", "fusion"])
def job(request, tmp_path_factory):
    """A trained stage with steps 4 and 8, below a run folder."""
    root = tmp_path_factory.mktemp("run")
    config = tiny_config()
    (root / "config.toml").write_text(to_toml(config))
    made = make_job(config, root / request.param, stage=request.param)
    train_stage(made)
    return made


def step_of(job, number=8):
    return job.folder / "checkpoints" / f"step-{number:08d}"


def test_the_averaged_weights_are_those_that_training_wrote(job, tmp_path):
    """To the bit, the file too: same names, same order, same metadata."""
    best = choose_step(job.folder, "", "best")
    consolidate(open_step(best), tmp_path / "model.safetensors", "ema")
    mine, theirs = (
        load_file(tmp_path / "model.safetensors"),
        load_file(job.folder / "model.safetensors"),
    )
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(mine[name], tensor), name
        assert mine[name].dtype == tensor.dtype
    for path in (tmp_path, job.folder):
        with safe_open(path / "model.safetensors", "pt") as file:
            assert ("codebook" in (file.metadata() or {})) == (job.task.name == "codec")


def test_the_raw_weights_are_the_live_ones(job, tmp_path):
    consolidate(open_step(step_of(job)), tmp_path / "raw.safetensors", "raw")
    live = job.task.core(job.task.model).state_dict()
    found = load_file(tmp_path / "raw.safetensors")
    assert found.keys() == live.keys()
    for name, tensor in live.items():
        assert torch.equal(found[name], tensor), name


def test_the_toolkit_loads_what_was_consolidated(job, tmp_path):
    if job.task.name != "codec":
        pytest.skip("a codec is enough")
    path = tmp_path / "model.safetensors"
    consolidate(open_step(step_of(job)), path, "ema")
    load_weights(build_codec(tiny_config().codec), path)


def test_a_changed_file_is_not_consolidated(job, tmp_path):
    import shutil

    copy = tmp_path / "step-00000008"
    shutil.copytree(step_of(job), copy)
    state = copy / "state-00000.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(IntegrityError, match="was changed"):
        open_step(copy)


def test_consolidating_needs_no_torch(job, tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from mmprod.checkpoint.choose import choose_step\n"
        "from mmprod.checkpoint.consolidate import consolidate, open_step\n"
        f"step = open_step(choose_step(Path({str(job.folder)!r}), '', 'latest'))\n"
        f"consolidate(step, Path({str(tmp_path / 'x.safetensors')!r}), 'ema')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    assert load_file(tmp_path / "x.safetensors")


def test_a_plain_optimizer_goes_on_from_what_was_converted(job, tmp_path):
    """Loaded into torch.optim.AdamW with the groups that the file names: the same moments."""
    (file,) = convert(open_step(step_of(job)), tmp_path / "out", "pytorch")
    state = torch.load(file, weights_only=True)
    assert state["step"] == 8
    model = job.task.model
    fresh = {n: torch.zeros_like(p, requires_grad=True) for n, p in model.named_parameters()}
    saved = state["optimizers"]["adamw"]
    groups = [{"params": [(n, fresh[n]) for n in g["param_names"]]} for g in saved["param_groups"]]
    optimizer = torch.optim.AdamW(groups)
    optimizer.load_state_dict(saved)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.01, 0.0]
    fragments = job.backend.fragments()
    assert sum(len(g["params"]) for g in groups) == len(fragments)
    for name, fragment in fragments.items():
        own = optimizer.state[fresh[name]]
        for field in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(own[field].view(-1), fragment.fields[field]), (name, field)
        assert float(own["step"]) == 8
        assert torch.equal(state["model"][name].view(-1), fragment.fields["weight"])
    persistent = model.state_dict().keys()
    assert state["model"].keys() == state["averaged"].keys() == persistent


def test_the_universal_form_has_a_folder_for_each_parameter(job, tmp_path):
    pointer, tag = convert(open_step(step_of(job)), tmp_path / "out", "deepspeed-universal")
    assert pointer.read_text() == tag.name == "step-00000008"
    for name, fragment in job.backend.fragments().items():
        folder = tag / "zero" / name
        assert {path.name for path in folder.iterdir()} == {
            "fp32.pt",
            "exp_avg.pt",
            "exp_avg_sq.pt",
            "step.pt",
        }
        weight = torch.load(folder / "fp32.pt", weights_only=True)["param"]
        assert weight.shape == fragment.shape
        assert torch.equal(weight.view(-1), fragment.fields["weight"])


def test_muon_has_no_universal_form_and_a_pytorch_one(tmp_path):
    config = tiny_config(optimizer="muon", steps=2, save_every=2)
    fusion = config.fusion.model_copy(update={"width": 32})
    config = config.model_copy(update={"fusion": fusion})
    (tmp_path / "config.toml").write_text(to_toml(config))
    job = make_job(config, tmp_path / "fusion", stage="fusion")
    train_stage(job)
    step = open_step(step_of(job, 2))
    with pytest.raises(ConfigError, match="no Adam moments") as caught:
        convert(step, tmp_path / "universal", "deepspeed-universal")
    assert "--to pytorch" in caught.value.hint
    assert not (tmp_path / "universal").exists()
    (file,) = convert(step, tmp_path / "out", "pytorch")
    muon = torch.load(file, weights_only=True)["optimizers"]["muon"]
    (names,) = [group["param_names"] for group in muon["param_groups"]]
    for index, name in enumerate(names):
        found = muon["state"][index]["momentum_buffer"]
        assert torch.equal(found.view(-1), job.backend.fragments()[name].fields["momentum_buffer"])


def test_nothing_is_written_over(job, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("")
    with pytest.raises(ConfigError, match="is there already"):
        convert(open_step(step_of(job)), tmp_path / "out", "pytorch")


@pytest.mark.parametrize("form", ["pytorch", "deepspeed-universal"])
def test_a_refused_write_is_an_os_error_and_leaves_nothing(job, tmp_path, form):
    """A file that may not grow beyond 1000 bytes; torch calls that a RuntimeError."""
    step = open_step(step_of(job))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*\.pt"):
            convert(step, tmp_path / "out", form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []


def test_a_step_folder_contradicts_another_stage_or_step(job):
    path, stage = step_of(job, 4), job.task.name
    for which in ("", "4"):
        assert choose_step(path, stage, which) == path
    other = "fusion" if stage == "codec" else "codec"
    for arguments in ((other, ""), ("", "8"), ("", "latest")):
        with pytest.raises(ConfigError, match="is no"):
            choose_step(path, *arguments)


def test_which_step_is_meant(job, tmp_path):
    root, stage = job.folder.parent, job.task.name
    assert choose_step(root, "", "latest") == step_of(job)
    assert choose_step(root, stage, "4") == step_of(job, 4)
    assert choose_step(job.folder, "", "latest") == step_of(job)
    assert choose_step(step_of(job, 4), "", "") == step_of(job, 4)
    assert choose_step(root, "", "") == step_of(job)
    with pytest.raises(ConfigError, match="no complete checkpoint '7'") as caught:
        choose_step(root, "", "7")
    assert "4, 8" in caught.value.hint
    with pytest.raises(ConfigError, match="holds no checkpoints"):
        choose_step(tmp_path, "", "latest")


ENGINE = """
import json, sys
from pathlib import Path
import torch, deepspeed
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from tests.training.tiny import codec_task, tiny_config

stage, folder, out = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
torch.manual_seed(99)
model = codec_task(tiny_config(seed=5)).model
engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config={
    "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    "checkpoint": {"load_universal": True},
})
path, _ = engine.load_checkpoint(folder)
assert path, "nothing was loaded"
found = {}
for name, p in engine.module.named_parameters():
    found[f"fp32/{name}"] = safe_get_full_fp32_param(p)
    for key in ("exp_avg", "exp_avg_sq"):
        found[f"{key}/{name}"] = safe_get_full_optimizer_state(p, key)
if torch.distributed.get_rank() == 0:
    torch.save({n: t.clone().cpu() for n, t in found.items()}, out)
torch.distributed.barrier()
import os; sys.stdout.flush(); os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_deepspeed_itself_loads_the_universal_form(job, tmp_path, stage):
    """An engine of its own, two ranks, weights of another seed: fp32 weights and moments equal."""
    if job.task.name != "codec":
        pytest.skip("a codec is enough")
    import os
    import socket

    convert(open_step(step_of(job)), tmp_path / "out", "deepspeed-universal")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = os.environ | {
        "WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    arguments = [str(stage), str(tmp_path / "out"), str(tmp_path / "found.pt")]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", ENGINE, *arguments],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    output = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(output)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for name, fragment in job.backend.fragments().items():
        for key, field in (("fp32", "weight"), ("exp_avg", "exp_avg"), ("exp_avg_sq",) * 2):
            assert torch.equal(found[f"{key}/{name}"].view(-1), fragment.fields[field]), (key, name)
