"""Which interface the ranks talk over; needs no more than a loopback interface."""

from __future__ import annotations

import socket

import pytest

from mmprod.training import network
from mmprod.training.network import (
    choose_interface,
    interface_address,
    interface_of,
    is_loopback,
    is_own,
    own_address,
)


def test_the_loopback_interface_is_found_both_ways():
    name = interface_of("127.0.0.1")
    assert name
    assert interface_address(name) == "127.0.0.1"
    assert interface_address("no-such-one") == ""
    assert interface_of("203.0.113.7") == ""


def test_own_addresses():
    assert own_address("127.0.0.1") == "127.0.0.1"
    assert own_address("no.such.host.invalid") == ""
    assert is_own("127.0.0.1")
    assert not is_own("203.0.113.7")
    assert not is_own("no.such.host.invalid")


@pytest.mark.parametrize(
    ("address", "yes"),
    [("127.0.1.1", True), ("::1", True), ("10.0.0.1", False), ("fe80::1%eth0", False)],
)
def test_loopback_addresses(address, yes):
    assert is_loopback(address) is yes


def test_the_users_choice_counts():
    face = choose_interface("node0", several=True, variables={"GLOO_SOCKET_IFNAME": "lo"})
    assert (face.name, face.address, face.warning) == ("lo", "127.0.0.1", "")


def test_one_node_needs_no_choice():
    variables: dict[str, str] = {}
    assert choose_interface("127.0.0.1", several=False, variables=variables).warning == ""
    assert variables == {}


def test_a_host_name_that_is_loopback_is_replaced_by_the_way_to_rank_0(monkeypatch):
    monkeypatch.setattr(network, "resolved", lambda host: "127.0.1.1")
    monkeypatch.setattr(network, "own_address", lambda host: "10.0.0.5")
    monkeypatch.setattr(network, "interface_of", lambda address: {"10.0.0.5": "ib0"}[address])
    variables: dict[str, str] = {}
    face = choose_interface("node0", several=True, variables=variables)
    assert (face.name, face.address) == ("ib0", "10.0.0.5")
    assert variables == {"GLOO_SOCKET_IFNAME": "ib0"}
    assert f"{socket.gethostname()} resolves to 127.0.1.1" in face.warning
    assert "set GLOO_SOCKET_IFNAME" in face.warning


def test_where_no_way_is_known_the_variable_is_named(monkeypatch):
    monkeypatch.setattr(network, "resolved", lambda host: "127.0.1.1")
    monkeypatch.setattr(network, "own_address", lambda host: "127.0.0.1")
    variables: dict[str, str] = {}
    face = choose_interface("node0", several=True, variables=variables)
    assert face.name == ""
    assert variables == {}
    assert "set GLOO_SOCKET_IFNAME to the interface" in face.warning


def test_a_host_name_with_a_real_address_is_left_to_gloo(monkeypatch):
    monkeypatch.setattr(network, "resolved", lambda host: "10.0.0.5")
    monkeypatch.setattr(network, "interface_of", lambda address: "eth0")
    variables: dict[str, str] = {}
    face = choose_interface("node0", several=True, variables=variables)
    assert (face.name, face.address, face.warning) == ("eth0", "10.0.0.5", "")
    assert variables == {}
