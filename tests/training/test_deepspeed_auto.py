"""Files as users of the Hugging Face integration have them: every "auto" resolves, or is refused by
name; what stands there switched off is no obstacle.
"""

from __future__ import annotations

import pytest

from mmprod.config.load import configs_dir
from mmprod.config.schema import TrainConfig
from mmprod.errors import ConfigError
from mmprod.training.deepspeed_config import log_changes, read_deepspeed, resolve
from mmprod.training.deepspeed_keys import KEYS, find
from mmprod.training.deepspeed_ledger import Decision

FP32 = TrainConfig(batch=32, precision="fp32", lr=3e-4, warmup=50, steps=700)
BF16 = TrainConfig(batch=32, precision="bf16")
FP16 = TrainConfig(batch=32, precision="fp16")

# What transformers' and accelerate's integrations fill in (4.x and 1.x): the key, and what it
# becomes here at stage 3 for FP32. NOTHING: DeepSpeed gets no such key.
NOTHING = object()
AUTO_KEYS = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 16,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "optimizer.params.lr": 3e-4,
    "optimizer.params.betas": [0.9, 0.98],
    "optimizer.params.eps": 1e-8,
    "optimizer.params.weight_decay": 0.01,
    "scheduler.type": NOTHING,
    "scheduler.params.warmup_min_lr": NOTHING,
    "scheduler.params.warmup_max_lr": NOTHING,
    "scheduler.params.warmup_num_steps": NOTHING,
    "scheduler.params.total_num_steps": NOTHING,
    "fp16.enabled": NOTHING,
    "fp16.auto_cast": NOTHING,
    "bf16.enabled": False,
    "amp.enabled": NOTHING,
    "amp.opt_level": NOTHING,
    "zero_optimization.reduce_bucket_size": 50_000_000,
    "zero_optimization.stage3_prefetch_bucket_size": 10_000_000,
    "zero_optimization.stage3_param_persistence_threshold": 10_000,
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": NOTHING,
    "zero_optimization.offload_optimizer.device": NOTHING,
    "zero_optimization.offload_optimizer.nvme_path": NOTHING,
    "zero_optimization.offload_param.device": NOTHING,
    "zero_optimization.offload_param.nvme_path": NOTHING,
    "checkpoint.use_node_local_storage": NOTHING,
    "zero_allow_untested_optimizer": NOTHING,
}
REFUSED_AUTO = ("zero_optimization.stage", "optimizer.type")


def nested(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def merged(*parts):
    out = {}
    for part in parts:
        for name, value in part.items():
            both = isinstance(value, dict) and isinstance(out.get(name), dict)
            out[name] = merged(out[name], value) if both else value
    return out


def value_at(config, key):
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return NOTHING
        config = config[part]
    return config


def scheduler_type(key):
    return {"scheduler": {"type": "WarmupLR"}} if key.startswith("scheduler.params") else {}


@pytest.mark.parametrize("key", AUTO_KEYS)
def test_every_auto_of_the_integration_resolves_alone(key):
    raw = merged({"zero_optimization": {"stage": 3}}, scheduler_type(key), nested(key, "auto"))
    resolved = resolve(raw, FP32, 2)
    assert value_at(resolved.config, key) == AUTO_KEYS[key]
    (line,) = [line for line in resolved.table if line.key == key]
    assert line.asked == "auto" and line.why and not line.changed
    assert (line.resolved is None) == (AUTO_KEYS[key] is NOTHING)


def test_all_of_them_in_one_file():
    raw = merged({"zero_optimization": {"stage": 3}}, *(nested(key, "auto") for key in AUTO_KEYS))
    config = resolve(raw, FP32, 2).config
    assert {key: value_at(config, key) for key in AUTO_KEYS} == AUTO_KEYS


@pytest.mark.parametrize("key", REFUSED_AUTO)
def test_an_auto_that_nothing_decides_is_refused_by_name(key):
    with pytest.raises(ConfigError, match=key) as caught:
        resolve(nested(key, "auto"), FP32, 2)
    assert caught.value.hint


@pytest.mark.parametrize(
    "key",
    [f"{s}.{k}".lstrip(".") for s, keys in KEYS.items() for k in keys if keys[k].kind != "section"],
)
def test_auto_anywhere_resolves_or_is_named(key):
    """Also where no integration writes it: never passed on, never dropped without a line."""
    raw = merged({"zero_optimization": {"stage": 3}}, scheduler_type(key), nested(key, "auto"))
    try:
        resolved = resolve(raw, FP32, 2)
    except ConfigError as error:
        assert key in error.message and error.hint
        return
    kept = value_at(resolved.config, key)
    assert kept != "auto" or key == "data_types.keep_in_fp32_modules"
    assert [line.why for line in resolved.table if line.key == key]


def test_a_file_of_the_transformers_tests_is_accepted():
    raw = {
        "fp16": {
            "enabled": "auto",
            "loss_scale": 0,
            "loss_scale_window": 1000,
            "initial_scale_power": 16,
            "hysteresis": 2,
            "min_loss_scale": 1,
        },
        "optimizer": {"type": "Adam", "params": {"lr": 3e-4, "betas": [0.9, 0.98]}},
        "scheduler": {
            "type": "WarmupLR",
            "params": {"warmup_min_lr": 0, "warmup_max_lr": 3e-4, "warmup_num_steps": 50},
        },
        "zero_optimization": {
            "stage": 3,
            "offload_param": {"device": "cpu", "pin_memory": True},
            "sub_group_size": 1e14,
            "stage3_max_live_parameters": 1e9,
            "stage3_gather_fp16_weights_on_model_save": True,
        },
        "steps_per_print": 2000,
        "wall_clock_breakdown": False,
    }
    resolved = resolve(raw, FP32, 1)
    assert "scheduler" not in resolved.config and resolved.weights == "fp32"
    assert resolved.config["zero_optimization"]["sub_group_size"] == 10**14
    changed = {line.key for line in resolved.table if line.changed}
    assert {"optimizer.type", "steps_per_print", "scheduler.type"} <= changed
    assert "zero_optimization.stage3_max_live_parameters" not in changed


@pytest.mark.parametrize(
    ("section", "value", "said"),
    [
        ("scheduler.params.warmup_max_lr", 1e-3, "lr = 0.0003"),
        ("scheduler.params.warmup_num_steps", 500, "warmup = 50"),
        ("scheduler.params.total_num_steps", 10, "steps = 700"),
        ("scheduler.params.warmup_min_lr", 1e-6, "= 0"),
        ("scheduler.params.warmup_type", "log", "linear"),
        ("optimizer.params.eps", 1e-6, "1e-08"),
        ("gradient_clipping", 0.5, "clip = 1.0"),
        ("fp16.enabled", True, 'precision = "fp32"'),
        ("bf16.enabled", True, 'precision = "fp32"'),
        ("optimizer.params.adam_w_mode", False, ""),
        ("bf16.bf16_master_weights_and_grads", True, ""),
        ("zero_optimization.compute_grad_norm", False, ""),
        ("zero_optimization.zenflow", {"topk_ratio": 0.1}, ""),
        ("zero_optimization.offload_optimizer.super_offload", True, ""),
        ("activation_checkpointing.partition_activations", True, ""),
        ("tensorboard.enabled", True, ""),
        ("wandb.enabled", True, ""),
        ("elasticity", {"enabled": True}, ""),
        ("sparse_gradients", True, ""),
        ("checkpoint.load_universal", True, ""),
        ("compile", {"deepcompile": True}, ""),
        ("data_efficiency", {"data_sampling": {"enabled": True}}, ""),
    ],
)
def test_what_disagrees_or_cannot_be_used_names_both_and_the_way_there(section, value, said):
    raw = merged(scheduler_type(section), nested(section, value))
    with pytest.raises(ConfigError) as caught:
        resolve(raw, FP32, 1)
    assert section in caught.value.message and said in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "raw",
    [
        {"tensorboard": {"enabled": False, "output_path": "x"}, "wandb": {"enabled": False}},
        {"csv_monitor": {"output_path": "x"}, "comet": {}},
        {"amp": {"enabled": False, "opt_level": "O1"}},
        {"elasticity": {"enabled": False, "max_train_batch_size": 2000}},
        {"sparse_gradients": False, "compile": {"deepcompile": False}},
        {"data_efficiency": {"data_sampling": {"enabled": False, "num_epochs": 3}}},
        {"data_efficiency": {"enabled": False, "data_routing": {"enabled": True}}},
        {"activation_checkpointing": {"partition_activations": False, "number_checkpoints": 4}},
        {"zero_optimization": {"stage": 1, "mics_shard_size": -1, "leaf_module": {}}},
        {"scheduler": {}, "fp16": {}, "optimizer": None},
        {"aio": {"block_size": 1048576, "overlap_events": True}},
    ],
)
def test_what_is_switched_off_is_no_obstacle(raw):
    resolved = resolve(raw, FP32, 1)
    assert (
        resolved.config == resolve({"zero_optimization": {"stage": resolved.stage}}, FP32, 1).config
    )


def why(raw, key):
    (line,) = [line for line in resolve(raw, FP32, 1).table if line.key == key]
    return line.why


def test_a_value_that_is_no_switch_is_not_called_switched_off():
    section = {"number_checkpoints": 4, "partition_activations": False}
    raw = {"activation_checkpointing": section}
    assert "no effect" in why(raw, "activation_checkpointing.number_checkpoints")
    assert why(raw, "activation_checkpointing.partition_activations") == "switched off"


def test_a_fixed_value_is_no_setting():
    eps, rate = "optimizer.params.eps", "scheduler.params.warmup_min_lr"
    assert why(nested(eps, "auto"), eps) == "eps of AdamW = 1e-08 is fixed here"
    with pytest.raises(ConfigError) as caught:
        resolve(nested(eps, 1e-6), FP32, 1)
    assert "section" not in caught.value.message and "change" not in caught.value.hint
    raw = merged(scheduler_type(rate), nested(rate, "auto"))
    assert why(raw, rate) == "the rate before the warm-up = 0 is fixed here"
    lr = "scheduler.params.warmup_max_lr"
    said = {x: why(merged(scheduler_type(lr), nested(lr, x)), lr) for x in ("auto", 3e-4)}
    assert said["auto"] == "is lr = 0.0003 of the training section"
    assert said[3e-4] == "agrees with lr = 0.0003 of the training section"


def test_what_deepspeed_would_print_is_switched_off_by_name():
    raw = {
        "wall_clock_breakdown": True,
        "memory_breakdown": False,
        "flops_profiler": {"enabled": True, "profile_step": 3},
    }
    resolved = resolve(raw, FP32, 1)
    assert "flops_profiler" not in resolved.config
    assert "wall_clock_breakdown" not in resolved.config
    changed = {line.key: line.why for line in resolved.table if line.changed}
    assert set(changed) == {
        "wall_clock_breakdown", "flops_profiler.enabled", "flops_profiler.profile_step"
    }  # fmt: skip
    assert all("docs/monitoring.md" in text for text in changed.values())


def test_fp16_gets_its_loss_scale():
    raw = {"zero_optimization": {"stage": 2}, "fp16": {"enabled": "auto", "loss_scale_window": 5}}
    resolved = resolve(raw, FP16, 1)
    assert resolved.weights == "fp16" and resolved.config["bf16"] == {"enabled": False}
    assert resolved.config["fp16"] == {
        "enabled": True,
        "auto_cast": False,
        "loss_scale": 0,
        "initial_scale_power": 16,
        "loss_scale_window": 5,
        "hysteresis": 2,
        "consecutive_hysteresis": False,
        "min_loss_scale": 1,
    }
    assert resolve({"zero_optimization": {"stage": 1}}, FP16, 1).weights == "fp16"


@pytest.mark.parametrize(
    ("raw", "cfg", "message"),
    [
        ({}, FP16, "stage 0 with fp16"),
        ({"fp16": {"enabled": False}, "zero_optimization": {"stage": 1}}, FP16, "loss scale"),
        (
            {"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}},
            BF16,
            'precision = "bf16"',
        ),
        (
            {
                "zero_optimization": {"stage": 1},
                "bf16": {"enabled": True},
                "data_types": {"grad_accum_dtype": "fp32"},
            },
            BF16,
            "stage 1",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            FP32,
            "needs ZeRO stage 1",
        ),
        (
            {"zero_optimization": {"stage": 2, "cpu_offload_param": True}},
            FP32,
            "needs ZeRO stage 3",
        ),
        (
            {
                "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}},
                "optimizer": {"params": {"torch_adam": True}},
            },
            FP32,
            "CPU Adam",
        ),
    ],
)
def test_combinations_that_deepspeed_gets_wrong_are_refused(raw, cfg, message):
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(raw, cfg, 1)
    assert caught.value.hint


def test_the_retired_name_of_offload_works():
    resolved = resolve({"zero_optimization": {"stage": 2, "cpu_offload": True}}, FP32, 1)
    assert resolved.offload
    section = resolved.config["zero_optimization"]
    assert section["offload_optimizer"]["device"] == "cpu" and "cpu_offload" not in section


def test_changes_are_logged_and_autos_counted(caplog):
    log_changes(
        resolve(read_deepspeed(configs_dir() / "deepspeed" / "huggingface.json"), BF16, 1), "codec"
    )
    text = caplog.text
    assert "steps_per_print = 2000 is left out: no effect: the loop logs" in text
    assert 'scheduler.type = "WarmupDecayLR" is left out: the loop\'s own schedule' in text
    assert "ZeRO 2, bf16 weights; 18 values" in text


def test_a_line_tells_whether_the_file_gets_its_way():
    assert Decision("a", 1, 2, "why").changed
    assert not Decision("a", "auto", 2, "why").changed
    assert not Decision("a", None, 2, "why").changed
    assert find("zero_optimization.stage") is not None and find("nothing") is None
