"""Prometheus accepts the rules, and each alert fires when it should and only then, as promtool's unit tests say."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from chart.rendering import CHART
from charts.monitoring.alerts import ALERTS, Alert
from e2e.monitoring import promtool

RULES = CHART / "files" / "alerts.yaml"
W = 'namespace="hypha",worker="w"'
ENDED = f"hypha_worker_jobs_ended_total{{{W}"
EXPIRATIONS = f"hypha_worker_lease_expirations_total{{{W}"
LAG = f"hypha_worker_event_loop_lag_seconds_bucket{{{W}"
CERTIFICATE = f"hypha_worker_certificate_remaining_seconds{{{W}}}"
RECONCILES = 'hypha_operator_reconcile_seconds_count{namespace="system",kind="HyphaJob"'
READY = f'kube_hyphaworker_status_condition{{{W},type="Ready"'

Series = dict[str, str]
"""Names of series with their values, one for each minute, in promtool's notation."""


class Case(NamedTuple):
    """Series for which an alert fires, and similar ones for which it does not, three hours after their start."""

    fires: list[Series]
    silent: list[Series]


CASES = {
    "HyphaOperatorDown": Case(
        fires=[{'up{job="hypha-operator"}': "1x170 0x10"}, {'up{job="hypha-operator"}': "1x150 _x30"}, {}],
        silent=[{'up{job="hypha-operator"}': "1x180"}, {'up{job="hypha-operator"}': "1x170 0x3 1x10"}],
    ),
    "HyphaReconcilesFail": Case(
        fires=[{f'{RECONCILES},outcome="failed"}}': "0+3x180", f'{RECONCILES},outcome="done"}}': "0+1x180"}],
        silent=[
            {f'{RECONCILES},outcome="failed"}}': "0+1x180", f'{RECONCILES},outcome="done"}}': "0+3x180"},
            {f'{RECONCILES},outcome="failed"}}': "7x180", f'{RECONCILES},outcome="done"}}': "0x180"},
        ],
    ),
    "HyphaWorkerNotReady": Case(
        fires=[{f'{READY},reason="NoGateway"}}': "0x180"}],
        silent=[
            {f'{READY},reason="Serving"}}': "1x180"},
            {f'{READY},reason="Draining"}}': "0x180"},
            {f'{READY},reason="Starting"}}': "_x175 0x5"},
            {READY.replace("Ready", "Stalled") + ',reason="NotStalled"}': "0x180"},
        ],
    ),
    "HyphaWorkerNotScraped": Case(
        fires=[{f'up{{job="hypha-worker",{W}}}': "1x160 0x20"}],
        silent=[{f'up{{job="hypha-worker",{W}}}': "1x180"}, {f'up{{job="others",{W}}}': "0x180"}],
    ),
    "HyphaWorkerDisconnected": Case(
        fires=[{f"hypha_worker_healthy{{{W}}}": "1x170 0x10"}],
        silent=[{f"hypha_worker_healthy{{{W}}}": "1x180"}, {f"hypha_worker_healthy{{{W}}}": "1x177 0x3"}],
    ),
    "HyphaWorkerHearsNobody": Case(
        fires=[{f"hypha_worker_healthy{{{W}}}": "1x180", f"hypha_network_subscribers{{{W}}}": "0x180"}],
        silent=[
            {f"hypha_worker_healthy{{{W}}}": "1x180", f"hypha_network_subscribers{{{W}}}": "2x180"},
            {f"hypha_worker_healthy{{{W}}}": "0x180", f"hypha_network_subscribers{{{W}}}": "0x180"},
        ],
    ),
    "HyphaCertificateExpiresSoon": Case(fires=[{CERTIFICATE: "600000x180"}], silent=[{CERTIFICATE: "700000x180"}]),
    "HyphaCertificateExpires": Case(fires=[{CERTIFICATE: "80000x180"}], silent=[{CERTIFICATE: "90000x180"}]),
    "HyphaJobsFail": Case(
        fires=[
            {f'{ENDED},executor="train/t",outcome="failed"}}': "0x130 0+1x50"},
            {
                f'{ENDED},executor="train/t",outcome="failed"}}': "0x130 0+1x50",
                f'{ENDED},executor="train/other",outcome="finished"}}': "0+9x180",
            },
        ],
        silent=[
            {f'{ENDED},executor="train/t",outcome="failed"}}': "0x170 0 1 2 2x7"},
            {
                f'{ENDED},executor="train/t",outcome="failed"}}': "0x130 0+1x50",
                f'{ENDED},executor="train/t",outcome="finished"}}': "0+2x180",
            },
            {f'{ENDED},executor="train/t",outcome="failed"}}': "0+1x50 50x130"},
        ],
    ),
    "HyphaLeasesExpire": Case(
        fires=[{f'{EXPIRATIONS},job_state="running"}}': "0x130 0+1x50"}],
        silent=[
            {f'{EXPIRATIONS},job_state="none"}}': "0x130 0+1x50"},
            {f'{EXPIRATIONS},job_state="running"}}': "0x170 0 1 2 2x7"},
        ],
    ),
    "HyphaJobsDoNotStart": Case(
        fires=[{f'hypha_worker_dispatches_total{{{W},outcome="refused",error_type="launch"}}': "0x130 0+1x50"}],
        silent=[
            {f'hypha_worker_dispatches_total{{{W},outcome="refused",error_type="lease"}}': "0x130 0+1x50"},
            {f'hypha_worker_dispatches_total{{{W},outcome="started"}}': "0x130 0+1x50"},
        ],
    ),
    "HyphaNodeTooSlow": Case(
        fires=[{f'{LAG},le="1.0"}}': "0+9x180", f'{LAG},le="5.0"}}': "0+10x180", f'{LAG},le="+Inf"}}': "0+10x180"}],
        silent=[{f'{LAG},le="1.0"}}': "0+10x180", f'{LAG},le="5.0"}}': "0+10x180", f'{LAG},le="+Inf"}}': "0+10x180"}],
    ),
}


def test_prometheus_accepts_the_rules() -> None:
    assert f"SUCCESS: {len(ALERTS)} rules found" in promtool("check", "rules", "--lint-fatal", str(RULES))


def test_every_alert_has_cases() -> None:
    assert list(CASES) == [alert.name for alert in ALERTS]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_fires_when_it_should_and_only_then(alert: Alert, tmp_path: Path) -> None:
    case = CASES[alert.name]
    tests = [
        {
            "name": f"{name} {number}",
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in written.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert.name}",alertstate="firing"}})',
                    "eval_time": "3h",
                    "exp_samples": [{"labels": "{}", "value": 1}] if name == "fires" else [],
                }
            ],
        }
        for name, cases in (("fires", case.fires), ("silent", case.silent))
        for number, written in enumerate(cases)
    ]
    file = tmp_path / "tests.yaml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(file))
