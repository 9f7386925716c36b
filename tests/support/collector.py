"""OpenTelemetry collectors that keep what they receive: one for OTLP over HTTP, one for OTLP over gRPC."""

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Thread
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

DEADLINE_S = 60.0
_DECOMPRESS = {"gzip": gzip.decompress, "deflate": zlib.decompress}
_REQUESTS = {
    "/v1/metrics": metrics_service_pb2.ExportMetricsServiceRequest,
    "/v1/traces": trace_service_pb2.ExportTraceServiceRequest,
    "/v1/logs": logs_service_pb2.ExportLogsServiceRequest,
}


class Collector:
    """What a collector received: requests by path of OTLP over HTTP, in order, with the headers of each."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.received: list[tuple[str, Mapping[str, str], Any]] = []
        self._changed = Condition()

    def add(self, path: str, headers: Mapping[str, str], request: Any) -> None:
        with self._changed:
            self.received.append((path, headers, request))
            self._changed.notify_all()

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for what has been received to fulfil a condition."""
        with self._changed:
            assert self._changed.wait_for(condition, DEADLINE_S), self.summary()

    def requests(self, path: str) -> list[Any]:
        return [request for where, _, request in list(self.received) if where == path]

    @property
    def resources(self) -> list[dict[str, str]]:
        """The attributes of the resources of all requests."""
        groups = [
            *(group for request in self.requests("/v1/metrics") for group in request.resource_metrics),
            *(group for request in self.requests("/v1/traces") for group in request.resource_spans),
            *(group for request in self.requests("/v1/logs") for group in request.resource_logs),
        ]
        return [attributes(group.resource.attributes) for group in groups]

    @property
    def metrics(self) -> dict[str, Any]:
        """The latest export of each metric that has data, by name."""
        return {
            metric.name: metric
            for request in self.requests("/v1/metrics")
            for group in request.resource_metrics
            for scope in group.scope_metrics
            for metric in scope.metrics
        }

    def points(self, name: str) -> dict[frozenset[tuple[str, str]], Any]:
        """The values of a metric by attributes; of a histogram, the counts."""
        if (metric := self.metrics.get(name)) is None:
            return {}
        return {
            frozenset(attributes(point.attributes).items()): _value(point)
            for point in getattr(metric, metric.WhichOneof("data")).data_points
        }

    def value(self, name: str, **chosen: str) -> Any:
        """The sum of the values of a metric that have these attributes, with `_` for `.`; None if there are none."""
        wanted = {(key.replace("_", "."), text) for key, text in chosen.items()}
        values = [value for found, value in self.points(name).items() if wanted <= found]
        return sum(values) if values else None

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests("/v1/traces")
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]

    @property
    def logs(self) -> list[Any]:
        return [
            record
            for request in self.requests("/v1/logs")
            for group in request.resource_logs
            for scope in group.scope_logs
            for record in scope.log_records
        ]

    def summary(self) -> str:
        return f"{len(self.received)} requests; metrics {sorted(self.metrics)}; spans {[s.name for s in self.spans]}"


def attributes(pairs: Any) -> dict[str, str]:
    return {pair.key: str(getattr(pair.value, pair.value.WhichOneof("value"))) for pair in pairs}


def _value(point: Any) -> Any:
    return point.count if hasattr(point, "bucket_counts") else getattr(point, point.WhichOneof("value"))


@contextmanager
def http_collector(status: int = 200) -> Iterator[Collector]:
    """A collector that serves OTLP over HTTP and answers everything with a status."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = _DECOMPRESS.get(self.headers.get("Content-Encoding", ""), bytes)(body)
            request = _REQUESTS[self.path].FromString(body) if self.path in _REQUESTS else body
            collector.add(self.path, {key.lower(): text for key, text in self.headers.items()}, request)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def grpc_collector() -> Iterator[Collector]:
    """A collector that serves OTLP over gRPC."""
    collector = Collector()

    def export(path: str, answer: Any) -> Any:
        class Service:
            def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - as generated
                collector.add(path, dict(context.invocation_metadata()), request)
                return answer()

        return Service()

    server = grpc.server(ThreadPoolExecutor(4))
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(
        export("/v1/metrics", metrics_service_pb2.ExportMetricsServiceResponse), server
    )
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(
        export("/v1/traces", trace_service_pb2.ExportTraceServiceResponse), server
    )
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(
        export("/v1/logs", logs_service_pb2.ExportLogsServiceResponse), server
    )
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None)
