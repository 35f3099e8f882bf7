"""Syntax, names and types of a DeepSpeed file: each fault with its line."""

from __future__ import annotations

import pytest

from mmprod.config.schema import TrainConfig
from mmprod.errors import ConfigError
from mmprod.training.deepspeed_config import read_deepspeed, resolve

FP32 = TrainConfig(batch=32, precision="fp32")


def test_lines_of_a_file_are_named(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(
        '{"bf16": {"enabled": "auto"},\n "zero_optimization": {"stage": 2,\n'
        '  "offload_optimizer": {\n   "pin_memry": true}}}'
    )
    with pytest.raises(ConfigError) as caught:
        read_deepspeed(path)
    assert caught.value.message.startswith(f"{path}:4: unknown key")
    assert caught.value.hint == "did you mean pin_memory?"
    path.write_text('{"optimizer": {"type": "AdamW", "params": {\n"betas": [0.5, 0.5],\n"lr": 1}}}')
    with pytest.raises(ConfigError, match=r"ds\.json:3: optimizer\.params\.lr = 1:"):
        resolve(read_deepspeed(path), TrainConfig(batch=8, betas=(0.5, 0.5)), 1)
    path.write_text('{\n"bf16": {},\n}')
    with pytest.raises(ConfigError, match=r"ds\.json:[23]: not valid JSON"):
        read_deepspeed(path)


def test_a_key_that_occurs_twice_has_its_lines(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"bf16": {"enabled": false,\n\n"enabled": true}}')
    with pytest.raises(
        ConfigError, match=r"ds\.json:3: key 'enabled' occurs twice, first in li.* 1"
    ):
        read_deepspeed(path)
    path.write_text('{"timers": [{"a": 1}, {"a": 2}], "bf16": {"enabled": false}}')
    assert read_deepspeed(path)["bf16"] == {"enabled": False}


@pytest.mark.parametrize("number", ["1e400", "1" + "0" * 400])
def test_a_number_beyond_all_has_its_line_and_no_infinity(tmp_path, number):
    path = tmp_path / "ds.json"
    path.write_text('{\n"gradient_clipping": ' + number + "}")
    with pytest.raises(ConfigError, match=r"ds\.json:2: gradient_clipping is a number too large"):
        read_deepspeed(path)


@pytest.mark.parametrize("stage", ["2", True, 4, -1])
def test_a_stage_that_is_none_names_those_there_are(stage):
    with pytest.raises(ConfigError) as caught:
        resolve({"zero_optimization": {"stage": stage}}, FP32, 1)
    assert caught.value.hint.startswith("use 0, 1, 2 or 3") and "auto" not in caught.value.hint


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        ({"train_batch_size": "64"}, "whole number"),
        ({"train_batch_size": 2.5}, "whole number"),
        ({"gradient_clipping": True}, "number"),
        ({"bf16": {"enabled": "true"}}, "true or false"),
        ({"zero_optimization": {"reduce_bucket_size": 0}}, "from 1"),
        ({"optimizer": {"params": {"betas": [0.9]}}}, "two numbers"),
        ({"fp16": {"min_loss_scale": 1e-5}}, "whole number"),
        ({"communication_data_type": "fp64"}, '"fp32" or "fp16" or "bf16"'),
        ({"data_types": {"keep_in_fp32_modules": "q"}}, "list of texts"),
    ],
)
def test_values_of_a_wrong_type_are_refused(raw, hint):
    with pytest.raises(ConfigError) as caught:
        resolve(raw, FP32, 1)
    assert hint in caught.value.hint


def test_a_batch_triple_that_does_not_multiply_shows_the_product():
    raw = {
        "train_batch_size": 32,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
    }
    assert resolve(raw, FP32, 4).accumulation == 2
    with pytest.raises(
        ConfigError, match="32 is not 2 processes x micro-batch 4 x accumulation 2 = 16"
    ):
        resolve(raw, FP32, 2)
