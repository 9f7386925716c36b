"""The dashboards in Grafana's form."""

import json
from typing import Any, Final

from charts.monitoring.fleet import FLEET
from charts.monitoring.market import MARKET
from charts.monitoring.network import NETWORK
from charts.monitoring.panels import Dashboard, Panel
from charts.monitoring.training import TRAINING

_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH: Final = 12
_HEIGHT: Final = 8

DASHBOARDS: Final = (FLEET, MARKET, TRAINING, NETWORK)


def rendered(dashboard: Dashboard) -> str:
    """Return a dashboard as Grafana imports it."""
    content = {
        "uid": dashboard.name,
        "title": dashboard.title,
        "tags": ["hypha"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "links": [{"type": "dashboards", "title": "Hypha", "tags": ["hypha"], "asDropdown": True, "keepTime": True}],
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
                _variable("namespace", "Namespace", "label_values(hypha_worker_healthy, namespace)"),
                _variable("worker", "Worker", 'label_values(hypha_worker_healthy{namespace=~"$namespace"}, worker)'),
            ]
        },
        "panels": [_panel(number, panel) for number, panel in enumerate(dashboard.panels)],
    }
    return json.dumps(content, indent=2) + "\n"


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    """Return a variable. Its value for all, `.*`, also matches nodes outside of a cluster, which lack the label."""
    return {
        "name": name,
        "type": "query",
        "label": label,
        "datasource": _SOURCE,
        "query": query,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "refresh": 2,
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    return {
        "id": number + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": {"h": _HEIGHT, "w": _WIDTH, "x": number % 2 * _WIDTH, "y": number // 2 * _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
            }
            for index, query in enumerate(panel.queries)
        ],
    }
