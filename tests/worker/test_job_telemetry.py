"""Telemetry that jobs report about themselves: a hostile job harms only its own trace."""

import math
import time
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from opentelemetry.metrics import Observation

from hypha_contracts.connector_api import PULL_SLICE
from hypha_contracts.job_telemetry import MetricRecord, TelemetryBatch, valid
from hypha_telemetry.instruments import Instruments
from hypha_telemetry.job_metrics import JOB_METRICS, PROGRESS, SLICES_AHEAD, TRANSFER
from hypha_telemetry.spans import FinishedSpan
from hypha_worker.job import Job
from hypha_worker.traces.intake import TelemetryIntake
from hypha_worker.traces.job_metrics import JobMetrics
from hypha_worker.traces.job_traces import DISPATCH, JobTraces, Trace
from support import jobs

NOW = 1_700_000_000.0
TRACE = Trace(id="ab" * 16, sampled=True, arrived=NOW - 60, offered=NOW - 60)
PARENT = TRACE.context(DISPATCH).span_id


class Exported:
    """An export that keeps everything."""

    def __init__(self) -> None:
        self.spans: list[FinishedSpan] = []
        self.export = self.spans.append

    def is_sampled(self, _trace_id: str) -> bool:
        return True


class Values(Instruments):
    """Instruments whose observations a test reads."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: dict[str, Any] = {}

    def observe(self, metric: Any, read: Any) -> None:
        self.reads[metric.name] = read

    def of(self, metric: Any) -> list[Observation]:
        found: list[Observation] = self.reads[metric.name]()
        return found


@pytest.fixture
def exported() -> Exported:
    return Exported()


@pytest.fixture
def values() -> Values:
    return Values()


@pytest.fixture
def intake(exported: Exported, values: Values) -> TelemetryIntake:
    return TelemetryIntake(JobTraces(exported, clock=lambda: NOW), JobMetrics(values))


def traced_job(**changes: Any) -> Job:
    return replace(jobs.job(), began=NOW - 60, traceparent=str(TRACE.context(DISPATCH)), **changes)


def span(**changes: Any) -> dict[str, Any]:
    times = {"start_ns": int((NOW - 2) * 1e9), "end_ns": int((NOW - 1) * 1e9)}
    return {"name": "batch", "span_id": "12" * 8, "parent_id": PARENT, **times, "attributes": {"samples": 8}} | changes


def batch(*spans: Any, trace_id: str = TRACE.id, metrics: tuple[Any, ...] = ()) -> TelemetryBatch:
    return TelemetryBatch(trace_id=trace_id, spans=list(spans), metrics=list(metrics))


def test_a_span_gets_the_ids_of_its_job_which_the_job_cannot_forge(intake: TelemetryIntake, exported: Exported) -> None:
    job = traced_job()
    intake.take(job, batch(span(attributes={"task": "forged", "reported_by": "node", "samples": 8})))
    (found,) = exported.spans
    assert (found.name, found.trace_id, found.span_id, found.parent_id) == ("batch", TRACE.id, "12" * 8, PARENT)
    ids = {"task": str(job.task_id), "lease": str(job.lease_id), "job": str(job.spec.job_id)}
    assert found.attributes == {**ids, "reported_by": "job", "samples": 8}


@pytest.mark.parametrize(
    "bad",
    [
        span(start_ns=int((NOW - 3600) * 1e9)),
        span(end_ns=int((NOW + 3600) * 1e9)),
        span(start_ns=int(NOW * 1e9), end_ns=int((NOW - 1) * 1e9)),
        span(start_ns=True),
        span(attributes={"number": math.nan}),
        span(attributes={"number": math.inf}),
        span(attributes={"number": 10**400}),
        span(attributes={"text": "x" * 100_000}),
        span(attributes={f"key{number}": 1 for number in range(10_000)}),
        span(attributes={"list": [1]}),
        span(attributes=[]),
        span(name=""),
        span(name=7),
        span(parent_id="zz" * 8),
        None,
    ],
)
def test_a_span_that_breaks_a_rule_is_dropped_and_the_others_are_kept(
    intake: TelemetryIntake, exported: Exported, bad: Any
) -> None:
    intake.take(traced_job(), batch(bad, span(name="good")))
    assert [found.name for found in exported.spans] == ["good"]


def test_hidden_characters_are_shown_as_escapes(intake: TelemetryIntake, exported: Exported) -> None:
    intake.take(traced_job(), batch(span(name="a\n\x1b[31m", attributes={"text": "\u202eevil"}, error="\x00")))
    (found,) = exported.spans
    assert (found.name + str(found.attributes["text"]) + str(found.error)).isprintable()


def test_a_span_of_a_foreign_trace_is_dropped(intake: TelemetryIntake, exported: Exported) -> None:
    intake.take(traced_job(), batch(span(), trace_id="ef" * 16))
    assert exported.spans == []


def test_a_job_without_a_sampled_trace_exports_no_span(intake: TelemetryIntake, exported: Exported) -> None:
    unsampled = TRACE.model_copy(update={"sampled": False}).context(DISPATCH)
    intake.take(replace(jobs.job(), traceparent=str(unsampled), began=NOW), batch(span()))
    intake.take(jobs.job(), batch(span()))
    assert exported.spans == []


def test_a_flood_of_one_job_leaves_room_for_another(exported: Exported, values: Values) -> None:
    now = 0.0
    intake = TelemetryIntake(JobTraces(exported, clock=lambda: NOW), JobMetrics(values), clock=lambda: now)
    hostile, honest = traced_job(), traced_job()
    for _ in range(1000):
        intake.take(hostile, batch(*[span()] * 64))
    assert len(exported.spans) <= 400
    exported.spans.clear()
    intake.take(honest, batch(span()))
    assert len(exported.spans) == 1
    exported.spans.clear()
    now = 1.0
    for _ in range(100):
        intake.take(hostile, batch(*[span()] * 64))
    assert len(exported.spans) <= 20


def test_the_node_reads_few_batches_of_one_job_in_a_second(exported: Exported, values: Values) -> None:
    now = 0.0
    intake = TelemetryIntake(JobTraces(exported), JobMetrics(values), clock=lambda: now)
    hostile, honest = traced_job(), traced_job()
    assert sum(intake.may_report(hostile) for _ in range(1000)) == 50
    assert intake.may_report(honest)
    now = 1.0
    assert sum(intake.may_report(hostile) for _ in range(1000)) == 5


def test_a_call_is_recorded_below_the_span_it_names_only_in_the_jobs_own_trace(
    intake: TelemetryIntake, exported: Exported
) -> None:
    job = traced_job()
    for trace_id in ("ef" * 16, TRACE.id):
        with intake.call(job, PULL_SLICE, f"00-{trace_id}-{'34' * 8}-01"):
            pass
    with intake.call(job, PULL_SLICE, None), intake.call(job, PULL_SLICE, "x" * 10_000):
        pass
    (found,) = exported.spans
    assert (found.name, found.trace_id, found.parent_id) == ("pull slice", TRACE.id, "34" * 8)


def records(*found: Any) -> list[MetricRecord]:
    return valid(MetricRecord, list(found))


def test_metrics_of_a_fixed_list_are_exported_by_task_and_counters_only_rise(values: Values) -> None:
    metrics, task_id = JobMetrics(values), uuid4()
    direction = {"source": "hub", "network.io.direction": "receive"}
    for amount in (5, 7, -3, math.nan, math.inf, 1e300):
        metrics.take(
            task_id,
            records({"name": TRANSFER.name, "value": float(amount), "increase": True, "attributes": direction}),
        )
        metrics.take(task_id, records({"name": SLICES_AHEAD.name, "value": float(amount)}))
    (transfer,) = values.of(TRANSFER)
    assert (transfer.value, transfer.attributes) == (12, {"task": str(task_id), **direction})
    (ahead,) = values.of(SLICES_AHEAD)
    assert ahead.value == -3


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "hypha.worker.jobs.active", "value": 1.0},
        {"name": TRANSFER.name, "value": 1.0, "attributes": {"source": "hub", "network.io.direction": "receive"}},
        {"name": SLICES_AHEAD.name, "value": 1.0, "increase": True},
        {"name": SLICES_AHEAD.name, "value": 1.0, "attributes": {"any": "label"}},
        {"name": TRANSFER.name, "value": 1.0, "increase": True, "attributes": {"source": "x"}},
        {"name": TRANSFER.name, "value": "8", "increase": True},
        {"name": TRANSFER.name, "value": True, "increase": "yes"},
    ],
)
def test_other_metrics_and_labels_are_dropped(values: Values, bad: dict[str, Any]) -> None:
    metrics = JobMetrics(values)
    metrics.take(uuid4(), records(bad))
    assert [value for reported in PROGRESS for value in values.of(reported.metric)] == []


def test_the_values_of_an_ended_job_are_exported_for_some_time(values: Values) -> None:
    now = time.monotonic()
    metrics, task_id = JobMetrics(values, clock=lambda: now), uuid4()
    metrics.take(task_id, records({"name": SLICES_AHEAD.name, "value": 0.5}))
    metrics.end(task_id)
    assert len(values.of(SLICES_AHEAD)) == 1
    now += 121
    assert values.of(SLICES_AHEAD) == []


def test_every_metric_that_jobs_report_is_in_the_catalogue() -> None:
    assert all(item.metric in JOB_METRICS for item in PROGRESS)


def test_the_spans_of_an_offer_are_exported_once_it_is_accepted_and_never_if_it_lapses(exported: Exported) -> None:
    traces = JobTraces(exported, clock=lambda: NOW)
    accepted, lapsed = traces.begin(NOW - 1), traces.begin(NOW - 1)
    assert accepted is not None
    for trace in (accepted, lapsed):
        traces.hold(trace)
        traces.record(trace, "offer", NOW - 1)
    traces.discard(lapsed)
    assert exported.spans == []
    traces.accept(accepted)
    traces.record(accepted, "job", NOW - 1)
    assert [(span.name, span.trace_id) for span in exported.spans] == [("offer", accepted.id), ("job", accepted.id)]
    assert exported.spans[0].parent_id == exported.spans[1].span_id
    assert exported.spans[1].parent_id is None


def test_a_restarted_node_continues_a_trace_with_the_same_ids(exported: Exported) -> None:
    restored = Trace.model_validate_json(TRACE.model_dump_json())
    JobTraces(exported).record(restored, "lease", NOW - 1)
    assert exported.spans[0].span_id == TRACE.context("lease").span_id
    assert exported.spans[0].parent_id == TRACE.context("job").span_id


def test_without_exporters_a_trace_costs_nothing_and_without_spans_it_only_says_that_metrics_are_wanted() -> None:
    assert JobTraces().begin(NOW) is None
    metrics_only = JobTraces(enabled=True).begin(NOW)
    assert metrics_only is not None
    assert str(metrics_only.context(DISPATCH)).endswith("-00")
