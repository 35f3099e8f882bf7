"""The Grafana dashboard of `mmprod serve`, as the JSON model that Grafana imports."""

from __future__ import annotations

import json
from typing import Any

from mmprod.deploying.facts import Facts
from mmprod.deploying.options import Options

SCHEMA_VERSION = 39
WIDTH, HEIGHT = 12, 8
"""Of a panel, in Grafana's grid of 24 columns: two beside each other."""
SOURCE = {"type": "prometheus", "uid": "${source}"}

_QUANTILE = "histogram_quantile({q}, sum by (le, {by}) (rate({name}_bucket[$__rate_interval])))"

PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Answers by model and status",
        "reqps",
        (
            (
                "sum by (model, status) (rate(mmprod_requests_total[$__rate_interval]))",
                "{{model}} {{status}}",
            ),
        ),
    ),
    (
        "Time of a request",
        "s",
        tuple(
            (
                _QUANTILE.format(q=q, by="model", name="mmprod_request_seconds"),
                f"{{{{model}}}} p{q * 100:g}",
            )
            for q in (0.5, 0.99)
        ),
    ),
    (
        "Requests waiting, by graph",
        "short",
        (("sum by (graph) (mmprod_queue_requests)", "{{graph}}"),),
    ),
    (
        "Rows of a batch, by graph",
        "short",
        (
            (
                "sum by (graph) (rate(mmprod_batch_rows_sum[$__rate_interval])) / "
                "sum by (graph) (rate(mmprod_batch_rows_count[$__rate_interval]))",
                "{{graph}}",
            ),
        ),
    ),
    (
        "A batch in its runner, 99th percentile",
        "s",
        ((_QUANTILE.format(q=0.99, by="graph", name="mmprod_compute_seconds"), "{{graph}}"),),
    ),
    (
        "Memory of a server",
        "bytes",
        (('process_resident_memory_bytes{job="mmprod"}', "{{instance}}"),),
    ),
    (
        "Shadow parity: verdicts",
        "ops",
        (
            (
                "sum by (graph, verdict) (rate(mmprod_shadow_checks_total[$__rate_interval]))",
                "{{graph}} {{verdict}}",
            ),
        ),
    ),
    (
        "Shadow parity: share of the limit used, 99th percentile",
        "percentunit",
        ((_QUANTILE.format(q=0.99, by="graph", name="mmprod_shadow_limit_used"), "{{graph}}"),),
    ),
    (
        "Ready, and the bundle that is served",
        "short",
        (("mmprod_ready", "{{instance}}"), ("mmprod_bundle", "{{name}} {{sha256}}")),
    ),
    (
        "Figures of the last comparison",
        "short",
        (("mmprod_shadow_figure", "{{graph}} {{output}} {{figure}}"),),
    ),
)


def dashboard(facts: Facts, options: Options) -> str:
    """The dashboard's JSON. It asks for its data source when it is imported."""
    content = {
        "uid": f"{options.name}-serve"[:40],
        "title": f"{options.name}: mmprod serve",
        "description": f"bundle {facts.name}, SHA-256 {facts.digest}",
        "tags": ["mmprod"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "source",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                }
            ]
        },
        "annotations": {"list": []},
        "panels": [_panel(number, *panel) for number, panel in enumerate(PANELS)],
    }
    return json.dumps(content, indent=2) + "\n"


def _panel(
    number: int, title: str, unit: str, targets: tuple[tuple[str, str], ...]
) -> dict[str, Any]:
    row, column = divmod(number, 24 // WIDTH)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": SOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
            for i, (expr, legend) in enumerate(targets)
        ],
    }
