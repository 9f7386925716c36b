"""Texts that several views share."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any, Final

from hypha_contracts.durations import short_duration
from hypha_contracts.text import count, number
from hypha_kubectl.views.jobs import Job

SCHEMA_VERSION: Final = 1
"""The version of the JSON that `plain` makes of views. It grows when a field goes away or changes its meaning."""
STYLES: Final = {"Running": "green", "Starting": "yellow", "Pending": "yellow", "Failed": "red", "Succeeded": "blue"}
"""The colour of each phase."""


def age(since: datetime | None, now: datetime) -> str:
    """Return how long ago a time was."""
    return short_duration((now - since).total_seconds()) if since else "-"


def job_age(job: Job, now: datetime) -> str:
    """Return how long a job has run, or ran, since its executor started; before that, since it was created."""
    return age(job.started or job.created, job.completed or now)


def time_left_s(job: Job, now: datetime) -> float | None:
    """Return how long a job that states its length probably runs, or None if nothing says so."""
    left_s = (job.estimated_end - now).total_seconds() if job.estimated_end and not job.ended else 0
    return left_s if left_s > 0 else None


def progress(job: Job, now: datetime) -> str:
    """Return how far a job is, as far as it has said."""
    parts = []
    if job.round is not None:
        parts.append(f"round {job.round}")
    if job.total_batches is not None and not job.ended:
        parts.append(f"batch {number(job.batches)} of {number(job.total_batches)}")
    if "loss" in job.metrics:
        parts.append(f"loss {number(job.metrics['loss'])}")
    if job.samples_per_second is not None and not job.ended:
        parts.append(f"{number(job.samples_per_second)} samples/s")
    elif job.samples:
        parts.append(count(job.samples, "sample"))
    if job.rounds_per_hour is not None and not job.ended:
        parts.append(f"{number(job.rounds_per_hour)} rounds/h")
    if left_s := time_left_s(job, now):
        parts.append(f"about {short_duration(left_s)} left")
    return ", ".join(parts)


def plain(value: Any) -> Any:
    """Return a view as values of JSON. Times are texts in UTC, and fields have the names of the view."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value
