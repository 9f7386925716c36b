"""The metrics of the operator."""

from typing import Final

from hypha_telemetry.metric import SECONDS, Kind, Metric

_KIND: Final = {"kind": "`HyphaWorker`, `HyphaJob`"}

RECONCILE: Final = Metric(
    "hypha.operator.reconcile",
    Kind.HISTOGRAM,
    "s",
    "Duration of reconciles",
    {**_KIND, "outcome": "`done`, `failed`"},
    SECONDS,
)
API_CALLS: Final = Metric(
    "hypha.operator.api_calls",
    Kind.COUNTER,
    "{call}",
    "Calls to the API server",
    {"method": "HTTP method", "status": "HTTP status"},
)
OBJECTS: Final = Metric("hypha.operator.objects", Kind.UP_DOWN_COUNTER, "{object}", "HyphaWorkers and HyphaJobs", _KIND)
QUEUE: Final = Metric(
    "hypha.operator.queue", Kind.UP_DOWN_COUNTER, "{object}", "Objects that are ready to be reconciled"
)
LEADS: Final = Metric("hypha.operator.leads", Kind.GAUGE, "{replica}", "1 if this replica leads, 0 if it stands by")
WATCH_LAG: Final = Metric("hypha.operator.watch_lag", Kind.GAUGE, "s", "Age of the oldest change without an event")

OPERATOR_METRICS: Final = (RECONCILE, API_CALLS, OBJECTS, QUEUE, LEADS, WATCH_LAG)
