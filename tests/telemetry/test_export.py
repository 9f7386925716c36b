"""The exporters against real collectors."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from opentelemetry.metrics import Observation

from hypha_telemetry import start
from hypha_telemetry.instruments import Instruments
from hypha_telemetry.metric import Kind, Metric
from hypha_telemetry.settings import read_settings
from hypha_telemetry.start import Exports
from hypha_worker.traces.job_traces import JobTraces, logged_in
from support.collector import Collector, attributes, grpc_collector, http_collector

COUNTED = Metric("hypha.test.counted", Kind.COUNTER, "{thing}", "Things that a test counts", {"kind": "any"})
TIMED = Metric("hypha.test.timed", Kind.HISTOGRAM, "s", "Times that a test takes", buckets=(1.0, 2.0))
OPEN: dict[str, Callable[[], AbstractContextManager[Collector]]] = {
    "http/protobuf": http_collector,
    "grpc": grpc_collector,
}


@contextmanager
def exporting(**environ: str) -> Iterator[Exports]:
    """Export by variables without the prefix `OTEL_`. At the end everything has been sent."""
    settings = read_settings({f"OTEL_{name}": value for name, value in environ.items()})
    with start.exporting(settings, {"service.name": "hypha-test"}, "1.2.3") as exports:
        yield exports


@contextmanager
def traced(exports: Exports, name: str) -> Iterator[None]:
    """Export a span around the block, which records of the log name, as the node does for jobs."""
    traces = JobTraces(exports.spans)
    trace = traces.begin(time.time())
    assert trace is not None
    with logged_in(trace.context(name)):
        yield
    traces.record(trace, name, trace.offered)


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
@pytest.mark.parametrize("protocol", OPEN)
def test_every_signal_reaches_the_collector_with_the_headers(protocol: str, compression: str) -> None:
    with OPEN[protocol]() as collector:
        with exporting(
            EXPORTER_OTLP_ENDPOINT=collector.endpoint,
            EXPORTER_OTLP_PROTOCOL=protocol,
            EXPORTER_OTLP_COMPRESSION=compression,
            EXPORTER_OTLP_HEADERS="Authorization=Bearer%20abc",
            RESOURCE_ATTRIBUTES="worker.region=eu",
        ) as exports:
            Instruments(exports.meter).counter(COUNTED).add(3, {"kind": "a"})
            with traced(exports, "outer"):
                logging.getLogger("hypha_test").warning("within %s", "the span")
        assert collector.points("hypha.test.counted") == {frozenset({("kind", "a")}): 3}
        (span,) = collector.spans
        (record,) = collector.logs
        assert span.name == "outer"
        assert (record.body.string_value, record.severity_text) == ("within the span", "WARN")
        assert (record.trace_id, record.span_id) == (span.trace_id, span.span_id)
        assert all(headers["authorization"] == "Bearer abc" for _, headers, _ in collector.received)
        for resource in collector.resources:
            assert resource["service.name"] == "hypha-test"
            assert resource["worker.region"] == "eu"


def test_every_kind_of_instrument_is_exported_as_what_it_is() -> None:
    with http_collector() as collector:
        with exporting(EXPORTER_OTLP_ENDPOINT=collector.endpoint) as exports:
            instruments = Instruments(exports.meter)
            instruments.histogram(TIMED).record(1.5)
            for kind in (Kind.COUNTER, Kind.UP_DOWN_COUNTER, Kind.GAUGE):
                metric = Metric(f"hypha.test.{kind.name.lower()}", kind, "By", "A figure")
                instruments.observe(metric, lambda: [Observation(7)])
        metrics = collector.metrics
        assert (metrics["hypha.test.counter"].sum.is_monotonic, metrics["hypha.test.counter"].unit) == (True, "By")
        assert not metrics["hypha.test.up_down_counter"].sum.is_monotonic
        assert metrics["hypha.test.up_down_counter"].sum.data_points[0].as_int == 7
        assert metrics["hypha.test.gauge"].gauge.data_points[0].as_int == 7
        assert list(metrics["hypha.test.timed"].histogram.data_points[0].explicit_bounds) == [1.0, 2.0]


def test_the_page_for_prometheus_has_the_names_of_the_catalogue() -> None:
    with exporting(METRICS_EXPORTER="prometheus") as exports:
        instruments = Instruments(exports.meter)
        instruments.counter(COUNTED).add(2, {"kind": "a"})
        instruments.histogram(TIMED).record(1.5)
        assert exports.page is not None
        page = exports.page().decode()
        assert f'{COUNTED.prometheus_name}{{kind="a"}} 2.0\n' in page
        assert f'{TIMED.prometheus_name}_bucket{{le="2.0"}} 1.0\n' in page
        assert "target_info{" in page


def test_the_page_for_prometheus_is_made_once_a_second_at_most() -> None:
    with exporting(METRICS_EXPORTER="prometheus") as exports:
        counter = Instruments(exports.meter).counter(COUNTED)
        assert exports.page is not None
        pages = set()
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            counter.add(1)
            pages.add(exports.page())
        assert len(pages) == 2
        assert b"hypha_test_counted_total" in max(pages, key=len)


def test_a_signal_whose_export_cannot_start_is_logged_and_the_others_are_exported(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_HTTP_METRICS_CREDENTIAL_PROVIDER", "no such provider")
    with http_collector() as collector:
        with exporting(EXPORTER_OTLP_ENDPOINT=collector.endpoint) as exports:
            assert exports.meter is None
            with traced(exports, "traced"):
                pass
        assert "no metrics are exported" in caplog.text
        assert [span.name for span in collector.spans] == ["traced"]


def test_texts_of_others_are_escaped_in_the_exported_log() -> None:
    with http_collector() as collector:
        with exporting(EXPORTER_OTLP_ENDPOINT=collector.endpoint):
            log = logging.getLogger("hypha_test")
            log.error(
                "a peer says %s", "\x1b[31mred https://user:pw@host/token", extra={"lines": ["last", "\u202ewords"]}
            )
            try:
                raise ValueError("\x07bell")
            except ValueError:
                log.exception("caught")
        said, caught = collector.logs
        assert said.body.string_value == r"a peer says \x1b[31mred https://host/..."
        assert attributes(said.attributes)["output"] == "last\n\\u202ewords"
        assert r"ValueError: \x07bell" in attributes(caught.attributes)["exception"]


def test_logs_end_with_the_exporters() -> None:
    before = list(logging.getLogger().handlers)
    with http_collector() as collector, exporting(EXPORTER_OTLP_ENDPOINT=collector.endpoint):
        assert len(logging.getLogger().handlers) == len(before) + 1
    assert logging.getLogger().handlers == before


def test_the_records_of_failed_exports_are_neither_exported_nor_show_headers(caplog: pytest.LogCaptureFixture) -> None:
    with http_collector(status=401) as collector:
        with exporting(
            EXPORTER_OTLP_ENDPOINT=collector.endpoint, EXPORTER_OTLP_HEADERS="authorization=s3cret"
        ) as exports:
            Instruments(exports.meter).counter(COUNTED).add(1)
            logging.getLogger("opentelemetry.test").warning("cannot export")
        assert "401" in caplog.text
        assert "s3cret" not in caplog.text
        assert collector.logs == []


@pytest.mark.parametrize("protocol", OPEN)
def test_a_missing_collector_delays_the_end_only_briefly(protocol: str) -> None:
    with http_collector() as gone:
        pass
    with exporting(EXPORTER_OTLP_ENDPOINT=gone.endpoint, EXPORTER_OTLP_PROTOCOL=protocol) as exports:
        Instruments(exports.meter).counter(COUNTED).add(1)
        with traced(exports, "unsent"):
            logging.getLogger("hypha_test").warning("unsent")
        before = time.monotonic()
    assert time.monotonic() - before < 8


def test_a_collector_that_refuses_everything_causes_few_lines_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with http_collector(status=503) as collector:
        often = {"METRIC_EXPORT_INTERVAL": "100", "EXPORTER_OTLP_TIMEOUT": "2000"}
        with exporting(EXPORTER_OTLP_METRICS_ENDPOINT=f"{collector.endpoint}/v1/metrics", **often) as exports:
            Instruments(exports.meter).counter(COUNTED).add(1)
            collector.until(lambda: len(collector.received) >= 6)
    (failure,) = (record for record in caplog.records if record.name.endswith("proto.http.metric_exporter"))
    assert "Service Unavailable" in failure.getMessage()


def test_without_the_package_of_grpc_a_warning_names_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.metric_exporter", None)
    with exporting(EXPORTER_OTLP_METRICS_ENDPOINT="http://collector:4317", EXPORTER_OTLP_PROTOCOL="grpc"):
        pass
    assert 'pip install "hypha-worker[otlp-grpc]"' in caplog.text


def test_a_sampler_that_drops_every_trace_sends_none() -> None:
    with http_collector() as collector:
        with (
            exporting(EXPORTER_OTLP_ENDPOINT=collector.endpoint, TRACES_SAMPLER="always_off") as exports,
            traced(exports, "dropped"),
        ):
            pass
        assert collector.spans == []


def test_no_sdk_is_imported_before_it_is_needed() -> None:
    script = """
import sys
import hypha_worker.node
from hypha_worker.telemetry import Telemetry
Telemetry().offers_sent.add(1)
loaded = [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter", "grpc"))]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
