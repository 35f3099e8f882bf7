"""A real Triton Inference Server on the CPU: the one bundled in the PyPI package nvidia-pytriton.

It brings the server, its python backend and nothing else, and wants NumPy 1. So it lives in a
virtual environment of its own under .cache, made once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".cache" / "triton"
PYTRITON = "nvidia-pytriton==0.7.0"
INSTALL_S = 600
PINNED = ("onnxruntime", "tokenizers", "pillow")
"""What the models import, in the versions of constraints.txt: the same library, the same bytes."""


@dataclass(frozen=True)
class Address:
    """Where a server of the Open Inference Protocol listens."""

    http: str
    grpc: str
    log: Path | None = None


def prepare() -> Path:
    """The virtual environment. Raises OSError, SubprocessError where it cannot be made or used."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = "\n".join([PYTRITON, *_pins()])
        stamp = HOME / "stamp"
        if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
            _run([sys.executable, "-m", "venv", "--clear", HOME / "venv"])
            pip = [HOME / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet"]
            _run([*pip, "--retries", "1", "--timeout", "20", PYTRITON, *_pins()])
            _backends()
            stamp.write_text(wanted, encoding="utf-8")
    _check_library()
    return HOME / "venv"


@contextlib.contextmanager
def serving(repository: Path, log: Path) -> Iterator[Address]:
    """A server of this repository on the loopback; ended, and waited for, afterwards."""
    ports = free_ports(3)
    packages = _packages(HOME / "venv")
    libraries = [packages / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR"))]
    command = [
        str(packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={HOME / 'backends'}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        "--exit-on-error=true",
    ]
    for kind, number in zip(("http", "grpc", "metrics"), ports, strict=True):
        command += [f"--{kind}-address=127.0.0.1", f"--{kind}-port={number}"]
    environment = os.environ | {
        "LD_LIBRARY_PATH": ":".join(map(str, libraries[::-1])),
        # The stub takes the environment of the first python3 on the path.
        "PATH": f"{HOME / 'venv' / 'bin'}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with log.open("w") as stream:
        server = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
        try:
            _wait(server, ports[0], log)
            yield Address(f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", log)
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_S)


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until it is ready; RuntimeError with its log when it ends before."""
    url = f"http://127.0.0.1:{port}/v2/health/ready"
    end = time.monotonic() + 180
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise RuntimeError(f"the server is not ready:\n{log.read_text(encoding='utf-8')[-6000:]}")


def _backends() -> None:
    """The python backend with the stub of this Python beside it, where the server looks."""
    server = _packages(HOME / "venv") / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.rmtree(HOME / "backends", ignore_errors=True)
    shutil.copytree(server / "backends", HOME / "backends")
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, HOME / "backends" / "python")


def _check_library() -> None:
    """The stub needs Python as a shared library, which not every Python brings along."""
    stub = HOME / "backends" / "python" / "triton_python_backend_stub"
    environment = os.environ | {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))}
    done = subprocess.run(
        ["ldd", stub], env=environment, capture_output=True, text=True, check=False
    )
    for line in done.stdout.splitlines():
        if "libpython" in line and "not found" in line:
            raise OSError(f"this Python has no {line.split()[0]}")


def _packages(venv: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return venv / "lib" / version / "site-packages"


def _pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.partition("==")[0] in PINNED]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
