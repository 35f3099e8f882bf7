"""Which TensorRT is taken, on this machine and on machines that this one plays."""

from __future__ import annotations

import logging

import pytest

from mmprod.engines import flavours
from mmprod.engines.flavours import Flavour, available_flavours, choose_flavour
from mmprod.errors import ConfigError, EnvironmentMissing
from mmprod.runners.cuda import Probe

RTX = Flavour("rtx", "1.7", True)
REGULAR = Flavour("tensorrt", "11.4", True)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Flavour]:
    """A machine with one sm90 device and both libraries; tests take things away."""
    known = {"rtx": RTX, "tensorrt": REGULAR}
    monkeypatch.setattr(flavours, "find_device", lambda: Probe("sm90", "H100"))
    monkeypatch.setattr(flavours, "probe_flavour", lambda name: known[name])
    return known


def test_what_this_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavours, "find_device", lambda: Probe(reason="no driver"))
    regular, rtx = available_flavours()
    assert (regular.name, regular.usable, regular.reason) == ("tensorrt", False, "no CUDA device")
    assert (rtx.name, rtx.usable) == ("rtx", True)
    assert rtx.version.startswith("1.")


def test_tensorrt_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavours, "find_device", lambda: Probe(reason="no driver"))
    with pytest.raises(EnvironmentMissing, match="no CUDA device") as caught:
        choose_flavour("tensorrt", ["sm86"])
    assert caught.value.hint == "no driver"


def test_auto_takes_the_device_when_it_is_the_only_target(
    machine: dict[str, Flavour], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mmprod"):
        assert choose_flavour("auto", ["sm90"]) == REGULAR
        assert choose_flavour("auto", ["sm90", "sm86"]) == RTX
        machine["tensorrt"] = Flavour("tensorrt", "", False, "broken")
        assert choose_flavour("auto", ["sm90"]) == RTX
    text = caplog.text
    assert "building with TensorRT 11.4: this device is the target sm90" in text
    assert "TensorRT for RTX 1.7: the targets are not just this device (sm90)" in text
    assert "TensorRT is not usable here (broken)" in text


def test_tensorrt_builds_for_its_own_device_only(machine: dict[str, Flavour]) -> None:
    with pytest.raises(ConfigError, match="not for sm86"):
        choose_flavour("tensorrt", ["sm90", "sm86"])


def test_rtx_that_is_missing_is_named(machine: dict[str, Flavour]) -> None:
    machine["rtx"] = Flavour("rtx", "", False, "No module named 'tensorrt_rtx'", "pip install x")
    with pytest.raises(EnvironmentMissing, match="TensorRT for RTX is not usable here: No module"):
        choose_flavour("auto", ["sm86"])


def test_an_unknown_flavour_is_a_usage_error() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_flavour("tensort", ["sm86"])  # type: ignore[arg-type]
    assert caught.value.hint == "did you mean tensorrt?"
