import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from opentelemetry.metrics import Observation
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from hypha_contracts.node_config import NodeConfig
from hypha_worker.telemetry import open_telemetry
from hypha_worker.telemetry_export import make_sampler


class Collector:
    """A collector: what was posted to it, by path, with the headers."""

    def __init__(self) -> None:
        self.received: list[tuple[str, dict[str, str], bytes]] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def decoded(self, path: str, message: Any) -> list[Any]:
        """The messages that came to a path; the exporter compresses nothing unless told to."""
        return [message.FromString(body) for where, _, body in self.received if where == path]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def config(**values: Any) -> NodeConfig:
    executor = {"class": "aggregate", "name": "ps", "runtime": "parameter-server"}
    needed = {
        "cert_pem": "c",
        "key_pem": "k",
        "trust_pem": "t",
        "gateway_addresses": ["/ip4/127.0.0.1/tcp/1"],
        "work_dir": "w",
        "resources": {"cpu": 1, "memory": 1, "storage": 1},
        "executors": [executor],
    }
    return NodeConfig.model_validate(needed | values)


def test_metrics_and_spans_reach_the_collector_with_attributes_and_headers(collector: Collector) -> None:
    configured = config(
        telemetry_endpoint=collector.endpoint + "/",
        telemetry_attributes={"worker.region": "eu"},
        telemetry_headers="authorization=Bearer abc",
    )
    with open_telemetry(configured, "12D3KooW", "1.2.3") as telemetry:
        telemetry.offers.add(3, {"outcome": "sent"})
        telemetry.observe("hypha.worker.jobs.active", "{job}", "Jobs that run", lambda: [Observation(2)])
        with telemetry.tracer.start_as_current_span("offer"):
            pass
    (metrics,) = collector.decoded("/v1/metrics", ExportMetricsServiceRequest)
    resource = {a.key: a.value.string_value for a in metrics.resource_metrics[0].resource.attributes}
    assert resource["service.name"] == "hypha-worker"
    assert resource["service.version"] == "1.2.3"
    assert resource["service.instance.id"] == "12D3KooW"
    assert resource["worker.region"] == "eu"
    values = {m.name: m for m in metrics.resource_metrics[0].scope_metrics[0].metrics}
    assert values["hypha.worker.offers"].sum.data_points[0].as_int == 3
    assert values["hypha.worker.jobs.active"].gauge.data_points[0].as_int == 2
    (traces,) = collector.decoded("/v1/traces", ExportTraceServiceRequest)
    assert traces.resource_spans[0].scope_spans[0].spans[0].name == "offer"
    assert all(headers["authorization"] == "Bearer abc" for _, headers, _ in collector.received)


def test_the_configured_service_name_replaces_ours(collector: Collector) -> None:
    configured = config(telemetry_endpoint=collector.endpoint, telemetry_attributes={"service.name": "mine"})
    with open_telemetry(configured, "12D3KooW", "1.2.3") as telemetry:
        telemetry.offers.add(1)
    (metrics,) = collector.decoded("/v1/metrics", ExportMetricsServiceRequest)
    attributes = {a.key: a.value.string_value for a in metrics.resource_metrics[0].resource.attributes}
    assert attributes["service.name"] == "mine"


def test_without_sampling_no_span_is_sent(collector: Collector) -> None:
    configured = config(telemetry_endpoint=collector.endpoint, telemetry_sampler="always_off")
    with open_telemetry(configured, "12D3KooW", "1.2.3") as telemetry, telemetry.tracer.start_as_current_span("offer"):
        pass
    assert collector.decoded("/v1/traces", ExportTraceServiceRequest) == []


@pytest.mark.parametrize(
    ("name", "ratio", "expected"),
    [
        (None, 0.1, ALWAYS_ON.get_description()),
        ("always_on", 0.1, ALWAYS_ON.get_description()),
        ("always_off", 1.0, ALWAYS_OFF.get_description()),
        ("traceidratio", 0.1, "TraceIdRatioBased{0.1}"),
        ("parentbased_traceidratio", 0.1, "ParentBased{root:TraceIdRatioBased{0.1}"),
    ],
)
def test_samplers_are_those_of_opentelemetry(name: str | None, ratio: float, expected: str) -> None:
    sampler: Sampler = make_sampler(config(telemetry_sampler=name, telemetry_sample_ratio=ratio))
    assert sampler.get_description().startswith(expected)


def test_a_missing_collector_delays_the_shutdown_only_briefly() -> None:
    before = time.monotonic()
    with open_telemetry(config(telemetry_endpoint="http://127.0.0.1:9"), "12D3KooW", "1") as telemetry:
        telemetry.offers.add(1)
        with telemetry.tracer.start_as_current_span("offer"):
            pass
    assert time.monotonic() - before < 10


def test_without_an_endpoint_the_sdk_is_not_imported(tmp_path: Path) -> None:
    script = """
import sys
import hypha_worker.node
from hypha_worker.telemetry import Telemetry
Telemetry().offers.add(1)
loaded = [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_an_unsupported_protocol_is_logged_and_does_not_stop_the_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    configured = config(telemetry_endpoint="http://127.0.0.1:9", telemetry_protocol="grpc")
    with open_telemetry(configured, "12D3KooW", "1") as telemetry:
        telemetry.offers.add(1)
    assert 'telemetry_protocol = "grpc" is not supported' in caplog.text
