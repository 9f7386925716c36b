"""The dashboard of all workers and of the operator."""

from typing import Final

from charts.monitoring.panels import FROM_RESOURCES, SELECTED, WORKER, Dashboard, Panel, Query, most, total

FLEET: Final = Dashboard(
    "hypha-fleet",
    "Hypha fleet",
    (
        Panel(
            "Healthy workers",
            "Workers that listen, have joined the network and have their reservation.",
            "short",
            (Query(f"sum(hypha_worker_healthy{{{SELECTED}}})", "healthy"),),
            "stat",
        ),
        Panel(
            "Workers that are not ready",
            f"HyphaWorkers by the reason of their condition Ready. {FROM_RESOURCES}",
            "short",
            (
                Query(
                    f'count by (reason) (kube_hyphaworker_status_condition{{type="Ready",{SELECTED}}} == 0)',
                    "{{reason}}",
                ),
            ),
        ),
        Panel("Active jobs", "Jobs that start, run or end.", "short", (total("hypha_worker_jobs_active", "state"),)),
        Panel(
            "Time until certificates expire",
            "A node whose certificate has expired loses all connections.",
            "s",
            (most("hypha_worker_certificate_remaining_seconds"),),
        ),
        Panel(
            "Reserved share of each resource",
            "The share of what a worker offers that leases reserve.",
            "percentunit",
            tuple(
                Query(
                    f"{total(f'hypha_worker_{resource}_reserved{suffix}').expression} "
                    f"/ {total(f'hypha_worker_{resource}_capacity{suffix}').expression}",
                    f"{WORKER} {resource}",
                )
                for resource, suffix in (("cpu", ""), ("memory", "_bytes"), ("storage", "_bytes"), ("gpu", "_bytes"))
            ),
        ),
        Panel(
            "HyphaJobs by phase",
            f"Ended ones are kept for a while. {FROM_RESOURCES}",
            "short",
            (
                Query(
                    f"sum by (phase) (kube_hyphajob_status_phase{{{SELECTED}}})",
                    "{{phase}}",
                ),
            ),
        ),
        Panel(
            "Operator: reconciles",
            "Reconciles per second. The operator repeats failed ones, and its log gives the reason.",
            "ops",
            (
                Query(
                    "sum by (kind, outcome) (rate(hypha_operator_reconcile_seconds_count[$__rate_interval]))",
                    "{{kind}} {{outcome}}",
                ),
            ),
        ),
        Panel(
            "Operator: duration of a reconcile",
            "The 99th percentile.",
            "s",
            (
                Query(
                    "histogram_quantile(0.99, sum by (le, kind) "
                    "(rate(hypha_operator_reconcile_seconds_bucket[$__rate_interval])))",
                    "{{kind}}",
                ),
            ),
        ),
        Panel(
            "Operator: queue and objects",
            "Objects in the operator's store, and those that wait to be reconciled. The queue should be short.",
            "short",
            (
                Query("sum by (kind) (hypha_operator_objects)", "{{kind}}"),
                Query("sum(hypha_operator_queue)", "queue"),
            ),
        ),
        Panel(
            "Operator: watch lag",
            "Time since a list showed a change that no watch has delivered. The kubelet restarts the operator when "
            "this exceeds a minute.",
            "s",
            (Query("max(hypha_operator_watch_lag_seconds)", "lag"),),
        ),
        Panel(
            "Operator: CPU",
            "Cores that the operator's process uses.",
            "short",
            (Query('sum(rate(process_cpu_time_seconds_total{job="hypha-operator"}[$__rate_interval]))', "operator"),),
        ),
        Panel(
            "Operator: memory",
            "Resident memory of the operator's process.",
            "bytes",
            (Query('sum(process_memory_usage_bytes{job="hypha-operator"})', "operator"),),
        ),
        Panel(
            "Operator: API server calls",
            "On 403 the operator's roles lack a right. The operator repeats calls that fail with 409, 429 or 5xx.",
            "ops",
            (
                Query(
                    "sum by (method, status) (rate(hypha_operator_api_calls_total[$__rate_interval]))",
                    "{{method}} {{status}}",
                ),
            ),
        ),
    ),
)
