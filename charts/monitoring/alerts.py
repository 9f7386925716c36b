"""The alerts, in the form of Prometheus' rules and as a table for people."""

import re
from dataclasses import dataclass
from typing import Any, Final, Literal

import yaml

_NAMESPACE: Final = "{{ $labels.namespace }}"
_NAME: Final = "{{ $labels.worker }}"
_WORKER: Final = f"{_NAMESPACE}/{_NAME}"
_LABEL: Final = re.compile(r"\{\{ \$(?:labels\.)?(\w+).*?\}\}")
_SHORT: Final = {"namespace": "ns", "worker": "w"}
_DAY_S: Final = 24 * 3600


@dataclass(frozen=True)
class Alert:
    """An alert.

    Attributes:
        severity: `critical` if jobs are lost or no job can run until somebody acts, else `warning`.
        expression: holds while something is wrong.
        lasting: how long it must hold.
        summary: what is wrong. Prometheus fills in the labels of the series.
        remedy: what to do, likewise, in Markdown.
    """

    name: str
    severity: Literal["critical", "warning"]
    expression: str
    lasting: str
    summary: str
    remedy: str


ALERTS: Final = (
    Alert(
        "HyphaOperatorDown",
        "critical",
        'absent(up{job="hypha-operator"} == 1)',
        "5m",
        "No operator answers. Running jobs continue, but no job starts and no change is applied.",
        "Read the log and the events of the operator's pod: `kubectl describe pod -n hypha-system "
        "-l app.kubernetes.io/component=operator`.",
    ),
    Alert(
        "HyphaReconcilesFail",
        "warning",
        'sum by (namespace, kind) (rate(hypha_operator_reconcile_seconds_count{outcome="failed"}[10m])) '
        "> 0.5 * sum by (namespace, kind) (rate(hypha_operator_reconcile_seconds_count[10m]))",
        "15m",
        "More than half of the operator's reconciles of {{ $labels.kind }} objects fail.",
        "The operator's log names the objects and the API server's errors.",
    ),
    Alert(
        "HyphaWorkerNotReady",
        "critical",
        'kube_hyphaworker_status_condition{type="Ready",reason!="Draining"} == 0',
        "15m",
        f"HyphaWorker {_WORKER} is not ready: {{{{ $labels.reason }}}}.",
        f"`kubectl get hyphaworker -n {_NAMESPACE} {_NAME} -o yaml` shows the reason and what to do about it.",
    ),
    Alert(
        "HyphaWorkerNotScraped",
        "warning",
        'up{job="hypha-worker"} == 0',
        "10m",
        f"The node of worker {_WORKER} does not answer Prometheus.",
        "See whether its pod runs, and whether `networkPolicy.metricsFrom` lets Prometheus in.",
    ),
    Alert(
        "HyphaWorkerDisconnected",
        "critical",
        "hypha_worker_healthy == 0",
        "5m",
        f"The node of worker {_WORKER} is not connected to its network. It gets no jobs, and leases may expire.",
        "Check that its gateways run and that TCP or UDP reaches them. The reason of the condition Connected, or "
        "`hypha-worker doctor`, names the cause.",
    ),
    Alert(
        "HyphaWorkerHearsNobody",
        "warning",
        "hypha_network_subscribers == 0 and hypha_worker_healthy == 1",
        "15m",
        f"The node of worker {_WORKER} has no peer that forwards requests, so it gets no jobs.",
        "Check that its gateways forward the topic of requests, and that they belong to the network of the schedulers.",
    ),
    Alert(
        "HyphaCertificateExpiresSoon",
        "warning",
        f"hypha_worker_certificate_remaining_seconds < {7 * _DAY_S}",
        "1h",
        f"The certificate of worker {_WORKER} expires in {{{{ $value | humanizeDuration }}}}.",
        "Put a new certificate for the same key in the place of the old one. The node needs no restart.",
    ),
    Alert(
        "HyphaCertificateExpires",
        "critical",
        f"hypha_worker_certificate_remaining_seconds < {_DAY_S}",
        "5m",
        f"The certificate of worker {_WORKER} expires in {{{{ $value | humanizeDuration }}}}. It then loses its jobs.",
        "Put a new certificate for the same key in the place of the old one. The node needs no restart.",
    ),
    Alert(
        "HyphaJobsFail",
        "warning",
        'sum by (namespace, worker, executor) (increase(hypha_worker_jobs_ended_total{outcome="failed"}[1h])) > 3 '
        "and on (namespace, worker, executor) "
        'sum by (namespace, worker, executor) (increase(hypha_worker_jobs_ended_total{outcome="failed"}[1h])) '
        "> 0.5 * sum by (namespace, worker, executor) (increase(hypha_worker_jobs_ended_total[1h]))",
        "0m",
        f"Most jobs of executor {{{{ $labels.executor }}}} on worker {_WORKER} failed in the last hour.",
        "The node's log holds the last lines of each failed job, and "
        f"`kubectl get hyphajobs -n {_NAMESPACE} -o wide` the reason.",
    ),
    Alert(
        "HyphaLeasesExpire",
        "warning",
        'sum by (namespace, worker) (increase(hypha_worker_lease_expirations_total{job_state="running"}[1h])) > 3',
        "0m",
        f"Worker {_WORKER} ended jobs whose leases their schedulers did not renew in time.",
        "Compare with other workers of the same schedulers. If only this one is concerned, look at its round trips, at "
        "the lag of its event loop and at its gateways.",
    ),
    Alert(
        "HyphaJobsDoNotStart",
        "warning",
        "sum by (namespace, worker) "
        '(increase(hypha_worker_dispatches_total{outcome="refused",error_type="launch"}[1h])) > 3',
        "0m",
        f"Worker {_WORKER} won jobs that it could not start.",
        "The node's log says why. Usual causes are a missing program, a full disk, or a work directory without rights.",
    ),
    Alert(
        "HyphaNodeTooSlow",
        "warning",
        "histogram_quantile(0.99, sum by (namespace, worker, le) "
        "(rate(hypha_worker_event_loop_lag_seconds_bucket[10m]))) > 1",
        "10m",
        f"The node of worker {_WORKER} runs late by more than a second, so that leases may expire.",
        "Give the node's process more CPU. In a cluster, raise `spec.controller.resources`.",
    ),
)


def rules() -> str:
    """Return the groups of rules, which both Prometheus and a PrometheusRule take."""
    return yaml.safe_dump(
        {"groups": [{"name": "hypha", "rules": [_rule(alert) for alert in ALERTS]}]}, sort_keys=False, width=120
    )


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "description": alert.remedy},
    }


def table() -> str:
    """Return the alerts as a table in Markdown, with `ns` and `w` for namespace and worker."""
    rows = ["| alert | severity | what is wrong | for | what to do |", "| --- | --- | --- | --- | --- |"]
    for alert in ALERTS:
        summary, remedy = (_LABEL.sub(_short, text) for text in (alert.summary, alert.remedy))
        rows.append(f"| {alert.name} | {alert.severity} | {summary} | {alert.lasting} | {remedy} |")
    return "\n".join(rows) + "\n"


def _short(match: re.Match[str]) -> str:
    return _SHORT.get(match[1], f"*{match[1]}*")
