"""DeepSpeed's own view: our table of keys is its table, and it takes what we resolve."""

from __future__ import annotations

import json

import pytest

from mmprod.config.load import configs_dir
from mmprod.config.schema import TrainConfig
from mmprod.training.deepspeed_config import read_deepspeed, resolve
from mmprod.training.deepspeed_keys import KEYS

FP32 = TrainConfig(batch=32, precision="fp32")
BF16 = TrainConfig(batch=32, precision="bf16")
FP16 = TrainConfig(batch=32, precision="fp16")


def test_names_and_defaults_are_those_of_deepspeed():
    """Guards our table against a new DeepSpeed."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.runtime import constants
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    models = {
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "zero_optimization": DeepSpeedZeroConfig,
        "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
        "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
        "comms_logger": CommsLoggerConfig,
        "tensorboard": TensorBoardConfig,
        "csv_monitor": CSVConfig,
        "wandb": WandbConfig,
        "comet": CometConfig,
    }
    removed = {"mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param"}
    for section, model in models.items():
        theirs = {field.alias or name: field for name, field in model.model_fields.items()}
        assert set(theirs) == set(KEYS[section]) - removed, section
        for name, key in KEYS[section].items():
            if key.default is not None:
                assert theirs[name].get_default(call_default_factory=True) == key.default, name
    profiler = DeepSpeedFlopsProfilerConfig({})
    assert set(vars(profiler)) == set(KEYS["flops_profiler"])
    assert profiler.profile_step == KEYS["flops_profiler"]["profile_step"].default
    for name, key in KEYS[""].items():
        usual = getattr(constants, f"{name.upper()}_DEFAULT", None)
        if usual is not None and key.default is not None:
            assert usual == key.default, name
    assert constants.GRADIENT_CLIPPING_DEFAULT == KEYS[""]["gradient_clipping"].default == 1.0


@pytest.mark.parametrize("cfg", [FP32, BF16, FP16], ids=["fp32", "bf16", "fp16"])
def test_deepspeed_takes_every_resolved_file_unchanged(cfg):
    from deepspeed.runtime.config import DeepSpeedConfig

    for path in sorted((configs_dir() / "deepspeed").glob("*.json")):
        if cfg is FP16 and path.stem == "zero0":
            continue
        resolved = resolve(read_deepspeed(path), cfg, 1)
        before = json.dumps(resolved.config)
        taken = DeepSpeedConfig(resolved.config)
        assert json.dumps(resolved.config) == before
        assert taken.train_batch_size == cfg.batch
        assert taken.gradient_clipping == cfg.clip
        assert taken.zero_config.stage == resolved.stage
        assert taken.float16_config.enabled == (cfg is FP16)
        assert taken.bfloat16_config.enabled == (resolved.weights == "bf16")
        for name, value in resolved.config["zero_optimization"].items():
            field = name.removeprefix("stage3_")
            found = getattr(taken.zero_config, name, getattr(taken.zero_config, field, None))
            if not isinstance(value, dict):
                assert found == value, name
