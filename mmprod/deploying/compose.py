"""`compose.yaml`: the server and Prometheus on one machine."""

from __future__ import annotations

from typing import Any

from mmprod.deploying.containers import KEY_FILE
from mmprod.deploying.facts import Facts
from mmprod.deploying.files import Files
from mmprod.deploying.labels import image_labels
from mmprod.deploying.monitoring import alerts, scrape_config
from mmprod.deploying.options import Options
from mmprod.deploying.server import CORES, READY, USER, memory_mib, on_engines
from mmprod.deploying.yaml_text import to_yaml

HARDENED: dict[str, Any] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "tmpfs": ["/tmp:rw,noexec,nosuid,size=64m"],
    "restart": "unless-stopped",
    "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}},
}


def render_compose(facts: Facts, options: Options) -> Files:
    """`compose/`: the services, and what Prometheus reads."""
    serving = options.serving
    host = f"[{serving.bind}]" if ":" in serving.bind else serving.bind
    ports = [f"{host}:{port}:{port}" for port in (serving.port, serving.grpc_port)]
    probe = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{serving.port}{READY}')"
    server: dict[str, Any] = {
        "image": options.images.serve,
        "user": f"{USER}:{USER}",
        **HARDENED,
        "ports": ports,
        "secrets": [{"source": "mmprod-key", "target": KEY_FILE}],
        "stop_grace_period": "45s",
        "healthcheck": {
            "test": ["CMD", "python", "-c", probe],
            "interval": "10s",
            "timeout": "3s",
            "retries": 3,
            "start_period": "60s",
        },
        "labels": image_labels(facts, "mmprod serve"),
        "deploy": {"resources": _resources(facts, options)},
        "networks": ["inner"],
    }
    content = {
        "name": options.name,
        "services": {"serve": server, "prometheus": _prometheus(options)},
        "networks": {"inner": {"driver": "bridge"}},
        "volumes": {"prometheus": {}},
        "secrets": {"mmprod-key": {"file": "./mmprod-key"}},
    }
    comments = (
        "The server and Prometheus on one machine: docker compose up --detach",
        "The key that clients send lies beside this file, readable by the users 10001 and 65534:",
        "  head -c 32 /dev/urandom | base64 > mmprod-key",
    )
    return {
        "compose/compose.yaml": to_yaml([content], comments),
        "compose/prometheus.yml": scrape_config(
            {"static_configs": [{"targets": [f"serve:{serving.port}"]}]},
            "/run/secrets/mmprod-key",
            "/etc/prometheus/alerts.yml",
        ),
        "compose/alerts.yml": alerts(facts, options),
    }


def _resources(facts: Facts, options: Options) -> dict[str, Any]:
    found: dict[str, Any] = {
        "limits": {"cpus": str(CORES), "memory": f"{memory_mib(facts, options)}M", "pids": 256}
    }
    if on_engines(options):
        device = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        found["reservations"] = {"devices": [device]}
    return found


def _prometheus(options: Options) -> dict[str, Any]:
    """Reads the server's metrics with the same key; asked from this machine only."""
    return {
        "image": options.images.prometheus,
        "user": "65534:65534",
        **HARDENED,
        "command": [
            "--config.file=/etc/prometheus/prometheus.yml",
            "--storage.tsdb.retention.time=15d",
        ],
        "ports": [f"127.0.0.1:{options.serving.prometheus_port}:9090"],
        "volumes": [
            "./prometheus.yml:/etc/prometheus/prometheus.yml:ro",
            "./alerts.yml:/etc/prometheus/alerts.yml:ro",
            "prometheus:/prometheus",
        ],
        "secrets": [{"source": "mmprod-key", "target": "/run/secrets/mmprod-key"}],
        "healthcheck": {
            "test": ["CMD", "promtool", "check", "healthy"],
            "interval": "30s",
            "timeout": "3s",
            "retries": 3,
        },
        "deploy": {"resources": {"limits": {"cpus": "1", "memory": "512M"}}},
        "depends_on": {"serve": {"condition": "service_healthy"}},
        "networks": ["inner"],
    }
