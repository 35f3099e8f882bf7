"""Descriptions of clusters, and projections on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprod.config.load import load_config
from mmprod.errors import ConfigError
from mmprod.planning.asked import Asked
from mmprod.planning.cluster import Cluster, cluster_names, load_cluster
from mmprod.planning.fit import Fit, Misfit, fit, micro_batches
from mmprod.planning.memory import Layout
from mmprod.planning.sizes import sizes_of
from mmprod.planning.timing import Work, step_time
from mmprod.planning.traffic import traffic_of

BASE = load_config("base")


def test_every_shipped_cluster_loads_and_names_its_source() -> None:
    assert {"a100-80", "h100", "h200", "b200", "l40s", "l4", "rtx4090"} <= set(cluster_names())
    for name in cluster_names():
        cluster = load_cluster(name)
        assert cluster.source and not cluster.price_per_gpu_hour
        assert cluster.tflops_fp32 < cluster.tflops_bf16


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="h10") as caught:
        load_cluster("h10")
    assert "h100" in caught.value.hint
    path = tmp_path / "ours.toml"
    path.write_text("memory_gb = 80\ngpu_per_node = 8\n")
    with pytest.raises(ConfigError, match="gpu_per_node") as caught:
        load_cluster(str(path))
    assert "gpus_per_node" in caught.value.hint
    path.write_text("memory_gb = 80\n")
    with pytest.raises(ConfigError, match="tflops_fp32"):
        load_cluster(str(path))
    with pytest.raises(ConfigError, match="mfu"):
        load_cluster("h100", mfu=1.5)


def found(stage: str, world: int, cluster: Cluster, asked: Asked) -> Fit:
    result = fit(BASE, stage, world, cluster, asked)
    assert isinstance(result, Fit), result
    return result


def test_one_device_is_the_formula_by_hand() -> None:
    cluster = load_cluster("h100", price_per_gpu_hour=2.0)
    one = found("fusion", 1, cluster, Asked())
    from mmprod.models.flops import training_flops

    seconds = training_flops(BASE, "fusion").total * 512 / (989e12 * 0.35)
    assert one.time.step_s == pytest.approx(seconds)
    assert one.time.network_s == 0 and one.time.efficiency == 1
    assert one.hours == pytest.approx(seconds * 400_000 / 3600)
    assert one.cost == pytest.approx(2 * one.hours)
    assert one.micro * one.layout.accumulation == 512


def test_the_smallest_stage_that_fits_is_taken() -> None:
    roomy = found("fusion", 8, load_cluster("h100"), Asked())
    assert roomy.layout.stage == 0
    peaks = {}
    for zero in (0, 1, 2, 3):
        peaks[zero] = found(
            "fusion", 64, load_cluster("h100"), Asked(stage=zero, weights="fp32")
        ).peak_bytes
    between = (peaks[0] + peaks[1]) / 2 / 1e9 / 0.9
    tight = load_cluster("h100", memory_gb=between)
    assert found("fusion", 64, tight, Asked()).layout.stage == 1


def test_what_does_not_fit_says_what_it_lacks() -> None:
    result = fit(BASE, "fusion", 1, load_cluster("h100", memory_gb=1.0), Asked())
    assert isinstance(result, Misfit) and "GB per device" in result.reason
    shared = fit(BASE, "fusion", 24, load_cluster("h100"), Asked())
    assert isinstance(shared, Misfit)
    assert shared.hint == "-o fusion_train.batch=576"
    odd = fit(BASE, "fusion", 8, load_cluster("h100"), Asked(micro=12))
    assert isinstance(odd, Misfit) and odd.hint == "--micro-batch 16"
    grown = found("fusion", 24, load_cluster("h100"), Asked(grow=True))
    assert grown.batch == 576 and grown.steps == round(400_000 * 512 / 576)


def test_more_devices_train_faster_until_the_network_binds() -> None:
    cluster = load_cluster("h100")
    worlds = (1, 2, 4, 8)
    hours = [found("codec", world, cluster, Asked()).hours for world in worlds]
    assert hours == sorted(hours, reverse=True)
    far = found("fusion", 64, cluster, Asked())
    assert far.time.bottleneck == "network" and far.time.efficiency < 0.5
    thousands = found("fusion", 4096, cluster, Asked(grow=True))
    assert thousands.batch == 4096 * 8 and thousands.time.step_s > far.time.step_s


def test_stage_three_overlaps_and_the_others_add() -> None:
    sizes, cluster = sizes_of(BASE, "fusion"), load_cluster("h100")
    work = Work(1e15, "bf16")
    adds = step_time(sizes, Layout(2, world=16), work, cluster)
    assert adds.step_s == pytest.approx(adds.compute_s + adds.network_s)
    overlaps = step_time(sizes, Layout(3, world=16), work, cluster)
    assert overlaps.step_s == max(overlaps.compute_s, overlaps.network_s)
    offloaded = step_time(sizes, Layout(2, offload="optimizer", world=16), work, cluster)
    assert offloaded.step_s > adds.step_s and offloaded.host_s > 0


def test_traffic_by_hand() -> None:
    sizes = sizes_of(BASE, "fusion")
    p, n = 4 * sizes.trained, 8
    sent = {z: traffic_of(sizes, Layout(z, world=n)).sent(n) for z in range(4)}
    ring = (n - 1) / n
    assert sent[0] == pytest.approx(2 * p * ring, rel=1e-3)
    assert sent[1] == sent[2] == pytest.approx(3 * p * ring, rel=1e-3)
    assert sent[3] == pytest.approx(2 * p * ring, rel=1e-3)
    again = traffic_of(sizes, Layout(2, world=n, accumulation=4)).sent(n)
    assert again == pytest.approx((2 * 4 + 1) * p * ring, rel=1e-3)
    halves = traffic_of(sizes, Layout(1, "bf16", world=n)).sent(n)
    assert halves == pytest.approx(sent[1] / 2, rel=1e-3)


def test_micro_batches_divide_in_whole_groups() -> None:
    assert micro_batches(64, 8) == [64, 32, 16, 8]
    assert micro_batches(6, 1) == [6, 3, 2, 1]
    assert micro_batches(4, 8) == [4, 2, 1]


def test_what_lacks_is_named_by_the_layout_that_comes_nearest() -> None:
    again = "fusion_train.activation_checkpointing"
    small = load_cluster("h100", memory_gb=1.0)
    set_already = fit(load_config("base", [f"{again}=true"]), "fusion", 1, small, Asked())
    unset = fit(load_config("base", [f"{again}=false"]), "fusion", 1, small, Asked())
    assert isinstance(set_already, Misfit) and isinstance(unset, Misfit)
    assert unset.hint == f"-o {again}=true" and set_already.hint == "--weights bf16"
    asked = Asked(offload="optimizer")
    no_host = fit(BASE, "fusion", 8, load_cluster("h100", host_memory_gb=0.1), asked)
    assert isinstance(no_host, Misfit) and "host memory" in no_host.reason


def test_weights_are_those_that_the_precision_implies() -> None:
    half = load_config("base", ["fusion_train.precision=fp16"])
    result = fit(half, "fusion", 8, load_cluster("h100"), Asked())
    assert isinstance(result, Fit)
    assert result.layout.weights == "fp16" and result.layout.stage == 1
    with pytest.raises(ConfigError, match="fp16 weights, not fp32"):
        Asked("fp32").check(half, ("fusion",))
    with pytest.raises(ConfigError, match="stage 0 takes no"):
        Asked(stage=0).check(half, ("fusion",))
    with pytest.raises(ConfigError, match="muon"):
        muon = load_config("base", ["fusion_train.optimizer=muon"])
        Asked().check_optimizer(muon, ("fusion",))
