"""An OpenTelemetry collector and a Prometheus that run for as long as a block does."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx

from e2e.cluster.tools import tool
from e2e.processes import Process

_READY_S: Final = 30.0
_GRPC: Final = re.compile(r'Starting GRPC server.*"endpoint":"([^"]+)"')
_HTTP: Final = re.compile(r'Starting HTTP server.*"endpoint":"([^"]+)"')
_LISTENING: Final = re.compile(r'"Listening on" component=web address=(\S+)')
_SIGNALS: Final = ("metrics", "traces", "logs")

Item = dict[str, Any]
"""A span, a metric or a log record in OTLP's JSON encoding, with its `resource` attributes and its `scope`'s name."""


class Collector:
    """A running collector. It accepts OTLP at two addresses, and keeps everything that it receives."""

    def __init__(self, process: Process, grpc: str, http: str) -> None:
        self.process = process
        self.grpc, self.http = f"http://{grpc}", f"http://{http}"

    def spans(self) -> list[Item]:
        """Return all spans so far."""
        return self._items("resourceSpans", "scopeSpans", "spans")

    def metrics(self) -> list[Item]:
        """Return all metrics so far, once for each time that they were exported."""
        return self._items("resourceMetrics", "scopeMetrics", "metrics")

    def logs(self) -> list[Item]:
        """Return all log records so far."""
        return self._items("resourceLogs", "scopeLogs", "logRecords")

    def _items(self, by_resource: str, by_scope: str, kind: str) -> list[Item]:
        return [
            {"resource": attributes(resource["resource"]), "scope": scope["scope"].get("name", ""), **item}
            for batch in list(self.process.events)
            for resource in batch.get(by_resource, [])
            for scope in resource[by_scope]
            for item in scope[kind]
        ]


def attributes(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a span, a resource, a data point or a record. Integers are texts, as in OTLP's JSON."""
    return {pair["key"]: next(iter(pair["value"].values()), None) for pair in item.get("attributes", [])}


class Sample(NamedTuple):
    """A series of a query's result, with its value."""

    labels: dict[str, str]
    value: float


class Prometheus:
    """A running Prometheus."""

    def __init__(self, process: Process, address: str) -> None:
        self.process = process
        self.url = f"http://{address}"

    def query(self, expression: str) -> list[Sample]:
        """Return the result of an instant query, now."""
        result = self.get("/api/v1/query", query=expression)["data"]["result"]
        return [Sample(series["metric"], float(series["value"][1])) for series in result]

    def get(self, path: str, **parameters: str) -> Any:
        """Return the answer of the API; AssertionError, with its message, for a failure."""
        answer = httpx.get(self.url + path, params=parameters, timeout=30, trust_env=False)
        assert answer.is_success, f"{path} {parameters}: {answer.text}"
        return answer.json()


@contextmanager
def running_collector(directory: Path, host: str = "127.0.0.1") -> Iterator[Collector]:
    """Run a collector at an address of this machine, with its configuration and log in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    anywhere = {"endpoint": f"{host}:0"}
    pipelines = {signal: {"receivers": ["otlp"], "exporters": ["json"]} for signal in _SIGNALS}
    config = {
        "receivers": {"otlp": {"protocols": {"grpc": anywhere, "http": anywhere}}},
        "exporters": {"json": {}},
        "service": {"pipelines": pipelines},
    }
    file = directory / "collector.yaml"
    file.write_text(json.dumps(config))
    process = Process("collector", [tool("collector"), "--config", str(file)], directory, os.environ)
    try:
        yield Collector(process, _logged(process, _GRPC), _logged(process, _HTTP))
    finally:
        process.stop()


@contextmanager
def running_prometheus(directory: Path, config: Mapping[str, Any]) -> Iterator[Prometheus]:
    """Run a Prometheus with a configuration, and keep its data and log in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "prometheus.yaml"
    file.write_text(json.dumps(config))
    command = [tool("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={directory / 'data'}"]
    process = Process("prometheus", [*command, "--web.listen-address=127.0.0.1:0"], directory, os.environ)
    try:
        prometheus = Prometheus(process, _logged(process, _LISTENING))
        _logged(process, re.compile("(Server is ready)"))
        yield prometheus
    finally:
        process.stop()


def promtool(*arguments: str, stdin: str = "") -> str:
    """Run promtool and return its output; AssertionError, with its output, if it fails."""
    command = [tool("promtool"), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _logged(process: Process, pattern: re.Pattern[str]) -> str:
    """Wait until a program's log matches, and return the first group."""
    match = process.until(f"log {pattern.pattern}", lambda: pattern.search(process.log.read_text()), _READY_S)
    return str(match[1])
