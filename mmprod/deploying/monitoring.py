"""Prometheus alert rules and a scrape configuration for `mmprod serve`, and a Grafana dashboard.

Names of metrics are those of the server's /metrics page, which asks for the key, too.
"""

from __future__ import annotations

from typing import Any

from mmprod.deploying.dashboard import dashboard
from mmprod.deploying.facts import Facts
from mmprod.deploying.files import Files
from mmprod.deploying.options import Options
from mmprod.deploying.server import METRICS, PODS, memory_mib
from mmprod.deploying.yaml_text import to_yaml

QUEUE = 64
"""Requests that wait for a graph before more are refused (`mmprod serve --queue`)."""
RUNBOOK = "docs/deploy.md#alerts"


def render_monitoring(facts: Facts, options: Options) -> Files:
    """`monitoring/`."""
    # Every pod on its own: behind the Service's one address, counters of several would be mixed.
    pods = {
        "names": [f"{options.name}-{PODS}.{options.namespace}.svc"],
        "type": "A",
        "port": options.serving.port,
        "refresh_interval": "15s",
    }
    return {
        "monitoring/alerts.yml": alerts(facts, options),
        "monitoring/prometheus.yml": scrape_config(
            {"dns_sd_configs": [pods]}, "/etc/prometheus/mmprod-key", "alerts.yml"
        ),
        "monitoring/dashboard.json": dashboard(facts, options),
    }


def scrape_config(servers: dict[str, Any], key_file: str, rules: str) -> str:
    """prometheus.yml that reads these rules. servers: how Prometheus finds them."""
    job = {
        "job_name": "mmprod",
        "metrics_path": METRICS,
        "authorization": {"type": "Bearer", "credentials_file": key_file},
        **servers,
    }
    content = {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": [rules],
        "scrape_configs": [job],
    }
    return to_yaml([content])


def alerts(facts: Facts, options: Options) -> str:
    """The rules: health, load, and whether answers drift from the reference."""
    groups = [
        {"name": "mmprod-serve", "rules": _health(facts, options) + _load()},
        {"name": "mmprod-parity", "rules": _parity(facts, options)},
    ]
    return to_yaml([{"groups": groups}])


def _health(facts: Facts, options: Options) -> list[dict[str, Any]]:
    most = memory_mib(facts, options) * 2**20 * 9 // 10
    errors = 'rate(mmprod_requests_total{status=~"5..",status!="503"}[5m])'
    return [
        _rule(
            "MmprodDown",
            'up{job="mmprod"} == 0 or absent(up{job="mmprod"})',
            "1m",
            "critical",
            "a server does not answer, or there is none",
        ),
        _rule(
            "MmprodNotReady",
            "mmprod_ready == 0",
            "5m",
            "critical",
            "a server takes no requests",
        ),
        _rule(
            "MmprodErrors",
            f"sum by (model) ({errors}) / sum by (model) (rate(mmprod_requests_total[5m])) > 0.01",
            "5m",
            "critical",
            "{{ $labels.model }} fails in {{ $value | humanizePercentage }} of its requests",
        ),
        _rule(
            "MmprodMemory",
            f'process_resident_memory_bytes{{job="mmprod"}} > {most}',
            "10m",
            "warning",
            "a server is within a tenth of its memory limit",
        ),
    ]


def _load() -> list[dict[str, Any]]:
    refused = 'rate(mmprod_requests_total{status=~"429|503"}[5m])'
    quantile = (
        "histogram_quantile(0.99, sum by (le, model) (rate(mmprod_request_seconds_bucket[5m])))"
    )
    return [
        _rule(
            "MmprodRefuses",
            f"sum({refused}) / sum(rate(mmprod_requests_total[5m])) > 0.05",
            "10m",
            "warning",
            "{{ $value | humanizePercentage }} of the requests are turned away: add replicas",
        ),
        _rule(
            "MmprodQueue",
            f"max by (graph) (mmprod_queue_requests) > {QUEUE * 3 // 4}",
            "5m",
            "warning",
            "the queue of {{ $labels.graph }} is three quarters full",
        ),
        _rule(
            "MmprodSlow",
            f"{quantile} > 10",
            "10m",
            "warning",
            "{{ $labels.model }} takes {{ $value | humanizeDuration }} at the 99th percentile",
        ),
    ]


def _parity(facts: Facts, options: Options) -> list[dict[str, Any]]:
    rules = [
        _rule(
            "MmprodOtherBundle",
            f'max(mmprod_bundle{{sha256!="{facts.digest}"}}) == 1',
            "1h",
            "warning",
            "a server serves another bundle than these files were rendered for",
        )
    ]
    if not options.serving.shadow:
        return rules
    # A sample alone may miss a limit that is meant for many: one failure is no alarm.
    checks = "sum by (graph) (increase(mmprod_shadow_checks_total{which}[15m]))"
    failed, every = (checks.format(which=w) for w in ('{verdict!="pass"}', ""))
    used = "histogram_quantile(0.5, sum by (le, graph) (rate(mmprod_shadow_limit_used_bucket[1h])))"
    drawn = "sum(rate(mmprod_compute_seconds_count[1h])) > 0"
    return [
        _rule(
            "MmprodShadowFailed",
            f"{failed} > 0.02 * {every} and {failed} > 1.5",
            "5m",
            "critical",
            "{{ $labels.graph }} often answers otherwise than the reference: take the server out",
        ),
        _rule(
            "MmprodShadowDrift",
            f"{used} > 0.9",
            "15m",
            "warning",
            "{{ $labels.graph }} uses more than nine tenths of its parity limit",
        ),
        _rule(
            "MmprodShadowSilent",
            f"{drawn} unless sum(increase(mmprod_shadow_checks_total[6h])) > 0",
            "6h",
            "warning",
            "requests are served and none was compared with the reference",
        ),
        *rules,
    ]


def _rule(name: str, expression: str, wait: str, severity: str, summary: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": wait,
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "runbook": RUNBOOK},
    }
