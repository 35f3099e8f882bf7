"""DeepSpeed files: every "auto" resolved, every disagreement and typing error refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from mmprod.config.load import configs_dir
from mmprod.config.schema import TrainConfig
from mmprod.errors import ConfigError
from mmprod.training.deepspeed_config import read_deepspeed, resolve

FP32 = TrainConfig(batch=32, precision="fp32", lr=3e-4, clip=0.5)
BF16 = TrainConfig(batch=32, precision="bf16")
SHIPPED = sorted((configs_dir() / "deepspeed").glob("*.json"), key=lambda path: path.stem)


def test_the_shipped_files_are_there():
    assert [path.stem for path in SHIPPED] == [
        "huggingface",
        "zero0",
        "zero1",
        "zero1-offload",
        "zero2",
        "zero2-offload",
        "zero3",
        "zero3-offload",
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("cfg", [FP32, BF16], ids=["fp32", "bf16"])
def test_a_shipped_file_resolves_completely(path, cfg):
    resolved = resolve(read_deepspeed(path), cfg, world=2)
    text = json.dumps(resolved.config)
    assert '"auto"' not in text
    assert resolved.config["gradient_clipping"] == cfg.clip
    assert resolved.config["train_micro_batch_size_per_gpu"] == 16
    assert resolved.config["optimizer"]["params"]["lr"] == cfg.lr
    assert resolved.stage == (2 if path.stem == "huggingface" else int(path.stem[4]))
    assert resolved.offload == path.stem.endswith("offload")
    keeps_bf16 = cfg is BF16 and path.stem in ("huggingface", "zero3-offload")
    assert resolved.weights == ("bf16" if keeps_bf16 else "fp32")
    assert ("torch_adam" in resolved.config["optimizer"]["params"]) != resolved.offload


def test_an_empty_file_gets_every_default_that_deepspeed_would_choose_badly():
    config = resolve({}, TrainConfig(batch=8, precision="fp32", clip=0), world=1).config
    assert config["gradient_clipping"] == 0
    assert config["optimizer"]["params"]["torch_adam"] is True
    assert config["bf16"] == {"enabled": False}


def test_the_callers_dictionary_is_left_alone():
    raw = {"zero_optimization": {"stage": 2}}
    before = copy.deepcopy(raw)
    resolve(raw, FP32, 1)
    assert raw == before


@pytest.mark.parametrize(
    ("raw", "message", "hint"),
    [
        ({"zero_optimisation": {}}, "'zero_optimisation'", "did you mean zero_optimization?"),
        ({"zero_optimization": {"stages": 1}}, "'zero_optimization.stages'", "stage?"),
        ({"optimizer": {"params": {"lrr": 1}}}, "'optimizer.params.lrr'", "lr?"),
        ({"scheduler": {"param": {}}}, "'scheduler.param'", "params?"),
        ({"lr": 1}, "'lr'", "optimizer.params"),
        ({"zero_optimization": 3}, "must be an object", ""),
    ],
)
def test_wrong_keys_are_named(tmp_path, raw, message, hint):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match=message) as caught:
        read_deepspeed(path)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "one JSON object"), ('{"bf16": {}, "bf16": {}}', "twice")],
)
def test_broken_files_are_refused(tmp_path, text, message):
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_deepspeed(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_deepspeed(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("raw", "cfg", "world", "message"),
    [
        ({"train_batch_size": 64}, FP32, 1, "train_batch_size = 64"),
        ({"gradient_clipping": 1.0}, FP32, 1, "gradient_clipping = 1.0"),
        ({"optimizer": {"params": {"lr": 1.0}}}, FP32, 1, "optimizer.params.lr = 1.0"),
        ({"optimizer": {"type": "Lion"}}, FP32, 1, "Lion"),
        ({"scheduler": {"type": "OneCycle"}}, FP32, 1, "OneCycle"),
        ({}, FP32, 3, "does not divide"),
        ({"gradient_accumulation_steps": 5}, FP32, 2, "does not divide"),
        (
            {"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 4},
            FP32,
            1,
            "is not 1 process x",
        ),
        ({"gradient_accumulation_steps": 0}, FP32, 1, "is 0"),
        ({"zero_optimization": {"stage": 4}}, FP32, 1, "stage is 4"),
        ({"zero_optimization": {"stage": True}}, FP32, 1, "stage is true"),
        ({"bf16": {"enabled": True}}, FP32, 1, "bf16.enabled = true"),
        ({"bf16": {"enabled": True}}, BF16, 1, "stage 0"),
        ({"fp16": {"enabled": True}}, FP32, 1, "fp16"),
        ({"data_types": {"grad_accum_dtype": "auto"}}, FP32, 1, "data_types.grad_accum_dtype"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            FP32,
            1,
            '"nvme"',
        ),
    ],
)
def test_what_cannot_work_is_refused_with_a_hint(raw, cfg, world, message):
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(raw, cfg, world)
    assert caught.value.hint


def test_micro_batches_give_the_accumulation():
    resolved = resolve({"train_micro_batch_size_per_gpu": 4}, FP32, world=2)
    assert resolved.accumulation == 4
    assert resolved.config["gradient_accumulation_steps"] == 4


def test_resolving_imports_neither_torch_nor_deepspeed():
    import subprocess
    import sys

    code = (
        "import sys; import mmprod.training.deepspeed_config; "
        "sys.exit(bool({'torch', 'deepspeed'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
