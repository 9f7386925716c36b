"""The dashboard of the market: requests, offers, leases and resources of each worker."""

from typing import Final

from charts.monitoring.panels import NODE, Dashboard, Panel, last_hour, quantiles, rate, total

MARKET: Final = Dashboard(
    "hypha-market",
    "Hypha worker and market",
    (
        Panel(
            "Requests of schedulers",
            "Requests per second by what the worker decided, and why it refused.",
            "reqps",
            (rate("hypha_worker_requests_total", "decision", "reason"),),
        ),
        Panel(
            "Waiting requests",
            "Requests that wait for free capacity.",
            "short",
            (total("hypha_worker_requests_waiting"),),
        ),
        Panel(
            "Offers",
            "Offers per second that were sent, and that ended: accepted, lapsed without a renewal, or undelivered.",
            "ops",
            (
                rate("hypha_worker_offers_sent_total", suffix="sent"),
                rate("hypha_worker_offers_ended_total", "outcome"),
            ),
        ),
        Panel(
            "Time until an offer is delivered",
            "From the arrival of the request to the scheduler's receipt of the offer.",
            "s",
            quantiles("hypha_worker_offer_latency_seconds"),
        ),
        Panel("Leases", "Leases that reserve resources.", "short", (total("hypha_worker_leases_active", "state"),)),
        Panel("Lease renewals", "Renewals per second.", "ops", (rate("hypha_worker_lease_renewals_total", "outcome"),)),
        Panel(
            "Expired leases",
            "Held leases that expired in the last hour. The node ends a job whose lease expires.",
            "short",
            (last_hour("hypha_worker_lease_expirations_total", "job_state"),),
        ),
        Panel(
            "Dispatches",
            "Jobs per second that schedulers dispatched.",
            "ops",
            (rate("hypha_worker_dispatches_total", "outcome"),),
        ),
        Panel(
            "Cores",
            "Cores that the worker offers, and that leases reserve.",
            "short",
            (
                total("hypha_worker_cpu_capacity", suffix="offered"),
                total("hypha_worker_cpu_reserved", suffix="reserved"),
            ),
        ),
        Panel(
            "Memory and GPU memory",
            "Memory that the worker offers, and that leases reserve.",
            "bytes",
            tuple(
                total(
                    f"hypha_worker_{resource}_{what}_bytes",
                    suffix=f"{resource} {verb}",
                )
                for resource in ("memory", "gpu")
                for what, verb in (("capacity", "offered"), ("reserved", "reserved"))
            ),
        ),
        Panel(
            "Node: CPU",
            "Cores that the node's process uses.",
            "short",
            (rate("process_cpu_time_seconds_total", where=NODE),),
        ),
        Panel(
            "Node: memory",
            "Resident memory of the node's process.",
            "bytes",
            (total("process_memory_usage_bytes", where=NODE),),
        ),
    ),
)
