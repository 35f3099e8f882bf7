"""Which of this machine's addresses and interfaces the ranks talk over. Torch-free.

gloo listens on the address that the host's own name resolves to. Where that is a loopback address,
as on many Debian machines and containers, ranks on other nodes are told to connect to themselves,
and the job hangs at its start. So in a job of several nodes the interface that leads to rank 0 is
chosen instead, and said.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import MutableMapping
from dataclasses import dataclass

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915
"""Linux: the IPv4 address of an interface (netdevice(7))."""


@dataclass(frozen=True)
class Interface:
    """What the ranks talk over: `name` (empty: unknown), this machine's `address` on it, `why`."""

    name: str
    address: str
    why: str
    warning: str = ""


def choose_interface(
    master: str, *, several: bool, variables: MutableMapping[str, str] | None = None
) -> Interface:
    """The interface for gloo; sets GLOO_SOCKET_IFNAME where the default would be loopback.

    `several`: the job has several nodes, which loopback cannot join.
    """
    env = os.environ if variables is None else variables
    if env.get(GLOO):
        return Interface(env[GLOO], interface_address(env[GLOO]), GLOO)
    if not several:
        return Interface("lo", "127.0.0.1", "one node")
    host = socket.gethostname()
    own, route = resolved(host), own_address(master)
    if own and not is_loopback(own):
        return Interface(interface_of(own), own, f"the address of {host}")
    fault = f"{host} resolves to {own or 'no address'} here, which other nodes cannot reach"
    name = interface_of(route) if route and not is_loopback(route) else ""
    if not name:
        found = "" if not route else f", and {master} to {route}"
        mend = f"set {GLOO} to the interface that leads to the other nodes (ip route)"
        return Interface("", own, "", f"{fault}{found}: {mend}")
    env[GLOO] = name
    mend = f"using {name}, which leads to {master}; set {GLOO} to choose another"
    return Interface(name, route, f"the way to {master}", f"{fault}: {mend}")


def resolved(host: str) -> str:
    """The first address of a host name, or empty."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return ""


def is_loopback(address: str) -> bool:
    """Whether an address in numbers leads back to this machine alone."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def own_address(host: str) -> str:
    """This machine's address from which packets to `host` leave; empty where there is no way or no
    such host. Sends nothing.
    """
    try:
        family, _, _, _, where = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def is_own(host: str) -> bool:
    """Whether `host` is this machine: its address can be listened on."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(where)
    except OSError:
        return False
    return True


def interface_of(address: str) -> str:
    """The interface with this IPv4 address, or empty."""
    for _, name in socket.if_nameindex():
        if interface_address(name) == address:
            return name
    return ""


def interface_address(name: str) -> str:
    """The IPv4 address of an interface; empty without one, or without the interface."""
    request = struct.pack("256s", name.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])
