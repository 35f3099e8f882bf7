"""Two machines on one: network namespaces joined by a cable, each with its own host name.

    node0 10.77.N.1/24 eth0 --- eth0 10.77.N.2/24 node1
They share files and processors, and nothing else: a loopback address of one leads nowhere in the
other, a port of one is free in the other. All of it is removed at the end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]
NETNS = Path("/etc/netns")
IN_NODE = 'hostname "$0"; exec "$@"'


def why_no_nodes(programs: Sequence[str] = ("ip", "unshare", "hostname")) -> str:
    """Empty where namespaces can be made, else the reason they cannot."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (apt install iproute2 openssh-server pdsh)"
    name = f"mm{os.getpid()}p"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode != 0:
        return f"no network namespaces here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


@dataclass
class Node:
    """One of the two: `namespace` of the system, `host` name, `address`."""

    namespace: str
    host: str
    address: str
    folder: Path
    """for its logs"""
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *command: str, log: str, **variables: str) -> subprocess.Popen[bytes]:
        """A program on this node, writing to `log`."""
        inside = ["ip", "netns", "exec", self.namespace, "unshare", "--uts"]
        inside += ["sh", "-c", IN_NODE, self.host, *command]
        with (self.folder / log).open("wb") as out:
            process = subprocess.Popen(
                inside,
                env=environment() | variables,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
            )
        self.started.append(process)
        return process

    def said(self, log: str) -> str:
        """What a program wrote so far."""
        return (self.folder / log).read_text(errors="replace")

    def pids(self) -> list[int]:
        """Everything that runs on this node, what its programs started too."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True
        )
        return [int(pid) for pid in listed.stdout.split()]


def environment() -> dict[str, str]:
    """The variables of a program on a node: no launcher's of the tests themselves."""
    ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    launchers = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return {name: value for name, value in os.environ.items() if name not in launchers} | ours


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[tuple[Node, Node]]:
    """node0 and node1. Whatever happens, their processes, namespaces and files are gone after."""
    number = os.getpid() % 250
    nodes = tuple(
        Node(f"mm{os.getpid()}n{i}", f"node{i}", f"10.77.{number}.{i + 1}", folder) for i in (0, 1)
    )
    before = signal.signal(signal.SIGTERM, _interrupt)  # or nothing below would run
    try:
        _set_up(nodes)
        yield nodes  # type: ignore[misc]  # a pair
    finally:
        _remove(nodes)
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _set_up(nodes: Sequence[Node]) -> None:
    hosts = "127.0.0.1 localhost\n" + "".join(f"{n.address} {n.host}\n" for n in nodes)
    ends = [f"mv{os.getpid()}{i}" for i in (0, 1)]
    for node in nodes:
        files = NETNS / node.namespace
        files.mkdir(parents=True)
        (files / "hosts").write_text(hosts)
        (files / "resolv.conf").write_text("")
        _ip("netns", "add", node.namespace)
    _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
    for node, end in zip(nodes, ends, strict=True):
        _ip("link", "set", end, "netns", node.namespace, "name", "eth0")
        _ip("-n", node.namespace, "addr", "add", f"{node.address}/24", "dev", "eth0")
        _ip("-n", node.namespace, "link", "set", "eth0", "up")
        _ip("-n", node.namespace, "link", "set", "lo", "up")


def _remove(nodes: Sequence[Node]) -> None:
    there = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.split()
    for node in nodes:
        if node.namespace in there:
            for pid in node.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _ip("netns", "del", node.namespace)
        for process in node.started:
            process.kill()
            process.wait()
        shutil.rmtree(NETNS / node.namespace, ignore_errors=True)
    with contextlib.suppress(OSError):
        NETNS.rmdir()  # if it was made here, it is empty


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def finish(processes: Sequence[subprocess.Popen[bytes]], timeout_s: float) -> list[int]:
    """Exit codes of all, in their order. Kills and fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    return [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]


def ssh_between(nodes: Sequence[Node], folder: Path) -> dict[str, str]:
    """Start sshd on both nodes; returns the variables with which pdsh logs in."""
    key = folder / "key"
    for name in (key, folder / "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name], check=True)
    shutil.copy(f"{key}.pub", folder / "authorized")
    Path("/run/sshd").mkdir(exist_ok=True)
    for node in nodes:
        config = folder / f"sshd-{node.host}"
        config.write_text(
            f"ListenAddress {node.address}\nHostKey {folder / 'host'}\n"
            f"AuthorizedKeysFile {folder / 'authorized'}\nStrictModes no\nUsePAM no\n"
            f"PidFile none\nPermitRootLogin yes\n"
        )
        sshd = shutil.which("sshd") or "/usr/sbin/sshd"
        node.start(sshd, "-D", "-e", "-f", str(config), log=f"sshd-{node.host}.log")
    _wait_for_ssh(nodes)
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    variables = folder / "deepspeed-env"
    keep = ("PYTHONPATH", "OMP_NUM_THREADS", "PYTHONUNBUFFERED", "TORCH_EXTENSIONS_DIR")
    have = environment()
    variables.write_text("".join(f"{name}={have[name]}\n" for name in keep if name in have))
    return {"PDSH_SSH_ARGS_APPEND": f"-i {key} {options}", "DS_ENV_FILE": str(variables)}


def _wait_for_ssh(nodes: Sequence[Node]) -> None:
    deadline = time.monotonic() + 20
    for node in nodes:
        while "Server listening" not in node.said(f"sshd-{node.host}.log"):
            assert time.monotonic() < deadline, node.said(f"sshd-{node.host}.log")
            time.sleep(0.05)


PYTHON = sys.executable
