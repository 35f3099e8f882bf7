"""`python -m tools.bench.serving BUNDLE`: `mmprod serve` beside other servers of the same file.

    ... --litserve VENV --mlserver VENV --kserve VENV     environments with the peer and onnxruntime

One run, all servers up, each asked in turn in several rounds; the medians of the rounds are shown.
`cpu_ms`: processor time of the server per answer, which says most where the machine is not idle.
Where an environment is not given, the row says so. Then: what the server adds to bare ONNX Runtime
for one client, and what batching is worth for 16.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from mmprod.bundle import Bundle, open_bundle
from mmprod.graphs.runner import Array, example_inputs
from mmprod.runners.ort import OrtRunner
from tools.bench.load import Load, Target, load

PEERS = Path(__file__).resolve().parent / "peers"
ROOT = Path(__file__).resolve().parents[2]
GRAPH = "embed_text"
CLIENTS = (1, 8, 32)
START_S = 90.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    bundle = open_bundle(options.bundle)
    busy = os.getloadavg()[0]
    report: dict[str, object] = {"load_before": round(busy, 2), "threads": options.threads}
    report["servers"] = beside_peers(bundle, options)
    report["overhead"] = overhead(bundle, options)
    report["batching"] = batching(bundle, options)
    if options.json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
        return 0
    if busy > 1:
        print(f"machine not idle (load {busy:.1f}): read the ratios only")
    for title in ("servers", "overhead", "batching"):
        print(f"\n{title}")
        for row in report[title]:  # type: ignore[attr-defined]
            print("  " + "  ".join(f"{key} {value}" for key, value in row.items()))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.serving", description=__doc__)
    parser.add_argument("bundle", type=Path)
    for name in ("litserve", "mlserver", "kserve"):
        parser.add_argument(f"--{name}", type=Path, metavar="VENV", help=f"has {name}")
    parser.add_argument("--seconds", type=float, default=3, help="per server, clients and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime, in all of them")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def beside_peers(bundle: Bundle, options: argparse.Namespace) -> list[dict[str, object]]:
    """A row per server and number of clients."""
    values = example_inputs(bundle.specs[GRAPH], 1, 0)
    rows: list[dict[str, object]] = []
    with ExitStack() as stack:
        targets = {"mmprod": stack.enter_context(_mmprod(bundle, options, values, json_=True))}
        targets["mmprod, bytes"] = stack.enter_context(_mmprod(bundle, options, values))
        for name, start in (("litserve", _litserve), ("mlserver", _mlserver), ("kserve", _kserve)):
            if getattr(options, name) is None:
                rows.append({"server": name, "note": "not installed"})
            else:
                targets[name] = stack.enter_context(start(bundle, options, values))
        for clients in CLIENTS:
            found = in_turn(targets, clients, options)
            rows += [{"server": name, **_shown(loads)} for name, loads in found.items()]
    return rows


def in_turn(
    targets: Mapping[str, Target], clients: int, options: argparse.Namespace
) -> dict[str, list[Load]]:
    """Each target in each round, after one short round that is not counted."""
    found: dict[str, list[Load]] = {name: [] for name in targets}
    for number in range(options.rounds + 1):
        for name, target in targets.items():
            seconds = options.seconds if number else 1.0
            measured = load(target, clients, seconds)
            if number:
                found[name].append(measured)
    return found


def overhead(bundle: Bundle, options: argparse.Namespace) -> list[dict[str, object]]:
    """Milliseconds at the median that one client pays beside the bare runner, by graph."""
    rows: list[dict[str, object]] = []
    for graph in (GRAPH, "codec_encode"):
        values = example_inputs(bundle.specs[graph], 1, 0)
        path = bundle.path(bundle.artefacts(role="onnx", graph=graph, precision="fp32")[0])
        runner = OrtRunner(bundle.specs[graph], path, threads=options.threads)
        with _mmprod(bundle, options, values, graph) as target:
            bare, served = [], []
            for _ in range(options.rounds):
                bare.append(_median_ms(lambda: runner(values), options.seconds))  # noqa: B023
                served.append(load(target, 1, options.seconds).p50_ms)
        both = statistics.median(bare), statistics.median(served)
        shown = {"bare_ms": both[0], "served_ms": both[1], "added_ms": both[1] - both[0]}
        rows.append({"graph": graph, **{key: round(value, 3) for key, value in shown.items()}})
    return rows


def batching(bundle: Bundle, options: argparse.Namespace) -> list[dict[str, object]]:
    """16 clients with and without."""
    values = example_inputs(bundle.specs[GRAPH], 1, 0)
    with ExitStack() as stack:
        targets = {
            name: stack.enter_context(_mmprod(bundle, options, values, GRAPH, (flag,)))
            for name, flag in (("batching", "--batching"), ("no batching", "--no-batching"))
        }
        found = in_turn(targets, 16, options)
    return [{"server": name, **_shown(loads)} for name, loads in found.items()]


def _shown(loads: Sequence[Load]) -> dict[str, object]:
    def middle(pick: Callable[[Load], float]) -> float:
        return round(statistics.median(map(pick, loads)), 2)

    return {
        "clients": loads[0].clients,
        "per_s": middle(lambda one: one.per_s),
        "p50_ms": middle(lambda one: one.p50_ms),
        "p99_ms": middle(lambda one: one.p99_ms),
        "cpu_ms": middle(lambda one: one.cpu_ms),
        "failed": sum(one.failed for one in loads),
    }


def _median_ms(work: Callable[[], object], seconds: float) -> float:
    end, times = time.perf_counter() + seconds, []
    while (start := time.perf_counter()) < end:
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


@contextmanager
def _mmprod(
    bundle: Bundle,
    options: argparse.Namespace,
    values: Mapping[str, Array],
    graph: str = GRAPH,
    flags: Sequence[str] = (),
    *,
    json_: bool = False,
) -> Iterator[Target]:
    port = free_port()
    command = [sys.executable, "-m", "mmprod", "serve", str(bundle.root), "--port", str(port)]
    command += ["--threads", str(options.threads), "--quiet", "--serve-unproven", *flags]
    path = f"/v2/models/graph.{graph}/infer"
    body, headers = (json_body(values), ()) if json_ else bytes_body(values)
    with _running(command, f"http://127.0.0.1:{port}/v2/health/ready") as group:
        yield Target(port, path, body, headers, group)


@contextmanager
def _litserve(
    bundle: Bundle, options: argparse.Namespace, values: Mapping[str, Array]
) -> Iterator[Target]:
    port = free_port()
    body = json.dumps({"rows": next(iter(values.values())).tolist()}).encode()
    command = _script(options.litserve, "litserve_server.py", bundle, options, port)
    with _running(command, f"http://127.0.0.1:{port}/health") as group:
        yield Target(port, "/predict", body, group=group)


@contextmanager
def _kserve(
    bundle: Bundle, options: argparse.Namespace, values: Mapping[str, Array]
) -> Iterator[Target]:
    port = free_port()
    command = _script(options.kserve, "kserve_server.py", bundle, options, port)
    with _running(command, f"http://127.0.0.1:{port}/v2/health/ready") as group:
        yield Target(port, "/v2/models/graph/infer", json_body(values), group=group)


@contextmanager
def _mlserver(
    bundle: Bundle, options: argparse.Namespace, values: Mapping[str, Array]
) -> Iterator[Target]:
    ports = [free_port() for _ in range(3)]
    server = dict(zip(("http_port", "grpc_port", "metrics_port"), ports, strict=True))
    extra = {"graph": str(_graph_file(bundle)), "threads": options.threads}
    model = {"name": "graph", "implementation": "mlserver_model.Graph"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(PEERS / "mlserver_model.py", folder)
        settings = {**server, "host": "127.0.0.1", "parallel_workers": 0, "debug": False}
        (folder / "settings.json").write_text(json.dumps(settings))
        content = {**model, "parameters": {"extra": extra}}
        (folder / "model-settings.json").write_text(json.dumps(content))
        command = [str(options.mlserver / "bin" / "mlserver"), "start", name]
        with _running(command, f"http://127.0.0.1:{ports[0]}/v2/health/ready", folder) as group:
            yield Target(ports[0], "/v2/models/graph/infer", json_body(values), group=group)


def _script(
    venv: Path, script: str, bundle: Bundle, options: argparse.Namespace, port: int
) -> list[str]:
    (name,) = (tensor.name for tensor in bundle.specs[GRAPH].inputs)
    arguments = [str(_graph_file(bundle)), name, str(options.threads), str(port)]
    return [str(venv / "bin" / "python"), str(PEERS / script), *arguments]


def _graph_file(bundle: Bundle) -> Path:
    (artefact,) = bundle.artefacts(role="onnx", graph=GRAPH, precision="fp32")
    return bundle.path(artefact).resolve()


@contextmanager
def _running(command: Sequence[str], ready: str, folder: Path = ROOT) -> Iterator[int]:
    """A server in a process group of its own (given), asked until it is ready, ended afterwards."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        command, cwd=folder, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        end = time.monotonic() + START_S
        while not _answers(ready):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"did not start: {' '.join(command)}")
            time.sleep(0.2)
        yield process.pid
    finally:
        os.killpg(process.pid, 15)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def json_body(values: Mapping[str, Array]) -> bytes:
    """An infer request in JSON."""
    inputs = [
        {**_described(name, value), "data": value.ravel().tolist()}
        for name, value in values.items()
    ]
    return json.dumps({"inputs": inputs}).encode()


def bytes_body(values: Mapping[str, Array]) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    """An infer request with tensors as bytes, both ways, and its headers."""
    inputs = [
        {**_described(name, value), "parameters": {"binary_data_size": value.nbytes}}
        for name, value in values.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    body = head + b"".join(np.ascontiguousarray(value).tobytes() for value in values.values())
    return body, (("Inference-Header-Content-Length", str(len(head))),)


def _described(name: str, value: Array) -> dict[str, object]:
    kinds = {"int32": "INT32", "uint8": "UINT8", "float32": "FP32"}
    return {"name": name, "datatype": kinds[value.dtype.name], "shape": list(value.shape)}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
