"""The dashboard of jobs and their training."""

from typing import Final

from charts.monitoring.panels import (
    FROM_RESOURCES,
    WORKER,
    Dashboard,
    Panel,
    Query,
    last_hour,
    most,
    quantiles,
    rate,
    total,
)

TRAINING: Final = Dashboard(
    "hypha-training",
    "Hypha job and training",
    (
        Panel(
            "Jobs",
            "Jobs by the status of their executor.",
            "short",
            (total("hypha_worker_jobs_active", "executor", "state"),),
        ),
        Panel(
            "Started and ended jobs",
            "Jobs that started, and that ended, in the last hour.",
            "short",
            (
                last_hour("hypha_worker_jobs_started_total", "executor", suffix="started"),
                last_hour("hypha_worker_jobs_ended_total", "executor", "outcome"),
            ),
        ),
        Panel(
            "Duration of jobs",
            "Jobs that ended.",
            "s",
            quantiles("hypha_worker_job_duration_seconds", "executor"),
        ),
        Panel(
            "Reports of ended jobs",
            "Reports per second to schedulers.",
            "ops",
            (rate("hypha_worker_job_reports_total", "outcome"),),
        ),
        Panel(
            "Samples and batches",
            "Samples and batches per second that each job trains.",
            "short",
            (
                rate("hypha_job_samples_total", "task", suffix="samples"),
                rate("hypha_job_batches_total", "task", suffix="batches"),
            ),
        ),
        Panel("Loss", "The latest loss that each job reported.", "none", (most("hypha_job_loss", "task"),)),
        Panel(
            "Rounds",
            "The latest round of which each job reported metrics.",
            "short",
            (most("hypha_job_round", "task"),),
        ),
        Panel(
            "Duration of an outer step",
            "From one update to the next.",
            "s",
            quantiles("hypha_job_outer_step_duration_seconds", "executor"),
        ),
        Panel(
            "Share of time spent waiting",
            "The share of outer steps in which jobs train nothing, because they exchange their update.",
            "percentunit",
            (
                Query(
                    f"{rate('hypha_job_outer_step_wait_seconds_sum', 'executor').expression} "
                    f"/ {rate('hypha_job_outer_step_duration_seconds_sum', 'executor').expression}",
                    f"{WORKER} {{{{executor}}}}",
                ),
            ),
        ),
        Panel(
            "All metrics of the training",
            f"The latest value of each metric that a job reports. {FROM_RESOURCES}",
            "none",
            (most("kube_hyphajob_status_progress_metric", "job_name", "metric"),),
        ),
        Panel(
            "CPU of jobs",
            "Cores that a job's processes use.",
            "short",
            (rate("hypha_job_cpu_time_seconds_total", "task"),),
        ),
        Panel("Memory of jobs", "Resident memory.", "bytes", (total("hypha_job_memory_usage_bytes", "task"),)),
        Panel(
            "Processes of jobs",
            "Processes and children of each job's executor and bridge.",
            "short",
            (total("hypha_job_processes", "task"),),
        ),
        Panel(
            "Disk of jobs",
            "Bytes per second that a job's processes read and write.",
            "Bps",
            (rate("hypha_job_disk_io_bytes_total", "task", "disk_io_direction"),),
        ),
        Panel(
            "Slices", "Slices per second that jobs asked for.", "ops", (rate("hypha_worker_slices_total", "outcome"),)
        ),
        Panel(
            "Slices and pushes",
            "Bytes per second of completed slices and pushes.",
            "Bps",
            (rate("hypha_worker_transfer_bytes_total", "content", "network_io_direction"),),
        ),
        Panel(
            "Rate of a transfer",
            "Mean rate of each slice and push.",
            "Bps",
            quantiles("hypha_worker_transfer_rate_bytes_per_second", "content", "network_io_direction"),
        ),
        Panel(
            "Transfers under way",
            "Slices and pushes under way, and pushes that wait for their job. Slices are read ahead of the executor.",
            "short",
            (
                total("hypha_worker_transfers_active", "content", "network_io_direction"),
                total("hypha_worker_pushes_waiting", suffix="waiting pushes"),
            ),
        ),
    ),
)
