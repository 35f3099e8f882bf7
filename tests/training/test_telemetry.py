"""Speed, MFU, memory: figures follow from what the loop measured, and are absent where unknown."""

from __future__ import annotations

import pytest
import torch

from mmprod.config.schema import TrainConfig
from mmprod.models.flops import training_flops
from mmprod.training.metrics import read_metrics
from mmprod.training.peak import GPUS, measured_cpu, of_gpu, peak_of
from mmprod.training.run import train
from mmprod.training.telemetry import TIMING, Monitoring, Telemetry, memory_bytes, monitoring_of
from tests.training.mini import mini_config
from tests.training.tiny import ALONE

MEANS = {"loss": 0.5, "step_seconds": 0.25, "data_seconds": 0.005}


def telemetry(**known) -> Telemetry:
    return Telemetry(Monitoring(**known), ALONE, TrainConfig(steps=110, batch=16), 0)


def test_figures_follow_from_times() -> None:
    told = telemetry(tokens=10, flops=2 * 10**9, peak_tflops=0.256).figures(MEANS, 10)
    assert told["loss"] == 0.5
    assert told["images_per_s"] == pytest.approx(64)
    assert told["tokens_per_s"] == pytest.approx(640)
    assert told["tflops"] == pytest.approx(0.128)
    assert told["mfu"] == pytest.approx(0.5)
    assert told["peak_tflops"] == 0.256
    assert told["data_wait"] == pytest.approx(0.02)
    assert "data_seconds" not in told
    assert set(told) - {"loss"} <= TIMING


def test_what_is_unknown_is_absent() -> None:
    told = telemetry().figures(MEANS, 10)
    assert {"mfu", "peak_tflops", "tflops", "tokens_per_s"} & set(told) == set()
    told = telemetry(flops=10**9).figures(MEANS, 10)
    assert told["tflops"] > 0
    assert "mfu" not in told


def test_the_time_left_counts_the_steps_of_this_process() -> None:
    counter = Telemetry(Monitoring(), ALONE, TrainConfig(steps=110, batch=16), 100)
    counter._started -= 20  # two steps in 20 s
    assert counter.figures(MEANS, 102)["eta_s"] == pytest.approx(80, rel=0.01)
    assert counter.figures(MEANS, 110)["eta_s"] == 0


def test_memory_is_that_of_this_process() -> None:
    before = memory_bytes(ALONE)
    ballast = torch.ones(32 * 2**20)
    grown = memory_bytes(ALONE) - before
    assert grown == pytest.approx(ballast.nbytes, rel=0.1)


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A10", 125, 31.2),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
    ],
)
def test_gpus_are_known_by_name(name: str, bf16: float, fp32: float) -> None:
    found = of_gpu(name, "bf16"), of_gpu(name, "fp16"), of_gpu(name, "fp32")
    assert [p.tflops for p in found if p] == [bf16, bf16, fp32]


def test_an_unknown_gpu_has_no_invented_peak() -> None:
    assert of_gpu("Made-up 9000", "bf16") is None
    assert of_gpu("NVIDIA A1000", "bf16") is None
    assert all(half >= full > 0 for _, half, full in GPUS)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM4-80GB MIG 3g.40gb",
        "NVIDIA H100 NVL",
        "NVIDIA H200 NVL",
        "NVIDIA GH200 480GB",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA A10G",
    ],
)
def test_a_device_of_a_similar_name_is_another_one(name: str) -> None:
    assert of_gpu(name, "bf16") is None


def test_a_stated_peak_counts_and_a_cpu_is_measured() -> None:
    assert peak_of(ALONE.device, "bf16", 3.5).tflops == 3.5
    found = peak_of(ALONE.device, "fp32")
    assert 1e-4 < found.tflops < 100
    assert "measured" in found.source
    assert found is measured_cpu("fp32", torch.get_num_threads())


def test_a_run_logs_its_speed_against_the_counted_operations(tmp_path) -> None:
    config = mini_config(log={"peak_tflops": 0.5})
    train(config, tmp_path / "run")
    for stage in ("codec", "fusion"):
        folder = tmp_path / "run" / stage
        lines = [line for line in read_metrics(folder) if line["kind"] == "log"]
        known = monitoring_of(config, stage, tmp_path / "run", ALONE)
        assert known.flops == training_flops(config, stage).total > 0
        for line in lines:
            assert line["tokens_per_s"] == pytest.approx(line["images_per_s"] * known.tokens)
            assert line["tflops"] == pytest.approx(line["images_per_s"] * known.flops / 1e12)
            assert line["mfu"] == pytest.approx(line["tflops"] / 0.5)
            assert 0 <= line["data_wait"] < 1
            assert line["memory_bytes"] > 50e6
        assert lines[-1]["eta_s"] == 0
        assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert (tmp_path / "run" / "codec" / "tensorboard").is_dir()
