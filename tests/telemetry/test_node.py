"""A real node exports what it does: over both forms of OTLP, and to Prometheus."""

import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import trio

from hypha_devnet.ports import free_port
from hypha_messages.types import Resources
from hypha_telemetry.metric import Kind
from hypha_telemetry.node_metrics import (
    LOSS,
    NODE_METRICS,
    OUTER_STEP,
    OUTER_STEP_WAIT,
    ROUND,
    SLICES,
    TRANSFER_RATE,
    TRANSFERRED,
    TRANSFERS_ACTIVE,
)
from hypha_telemetry.process_metrics import PROCESS_METRICS
from hypha_telemetry.variables import VARIABLES
from support.certs import Pki
from support.collector import Collector, grpc_collector, http_collector
from support.jobs import train_spec
from support.networks import DEADLINE_S, gateway
from support.node_process import stage, wanted

pytestmark = pytest.mark.anyio

OTHERWISE = {
    metric.name
    for metric in (
        *(SLICES, TRANSFERRED, TRANSFER_RATE, TRANSFERS_ACTIVE),
        *(ROUND, LOSS, OUTER_STEP, OUTER_STEP_WAIT),
    )
}
"""What only a job that moves data and reports causes; the tests of the connector and of training do."""
HARMLESS = {"OTEL_SERVICE_NAME", "OTEL_EXPORTER_PROMETHEUS_HOST"} | {
    name for name in VARIABLES if name.endswith("_ENDPOINT")
}
"""Any text is a value of these."""
EVERYTHING = {metric.name: metric for metric in (*NODE_METRICS, *PROCESS_METRICS)}


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


@pytest.mark.parametrize(
    ("open_collector", "protocol"), [(http_collector, "http/protobuf"), (grpc_collector, "grpc")], ids=["http", "grpc"]
)
async def test_a_node_sends_metrics_a_trace_and_its_log_to_a_collector(
    pki: Pki, open_collector: Callable[[], AbstractContextManager[Collector]], protocol: str
) -> None:
    with open_collector() as collector:
        settings: Mapping[str, Any] = {
            "telemetry_endpoint": collector.endpoint,
            "telemetry_protocol": protocol,
            "telemetry_attributes": {"worker.region": "eu"},
        }
        async with gateway(pki) as entry, stage(pki, entry, "finish", **settings) as s:
            lease = await s.scheduler.lease()
            assert await s.scheduler.dispatch(lease, train_spec(), uuid4())
            assert (await s.scheduler.status()).status.type == "Finished"
            s.node.signal(signal.SIGTERM)
            assert await s.node.ended() == 0
        assert collector.value("hypha.worker.jobs.started", executor="train/test") == 1
        assert collector.value("hypha.worker.jobs.ended", executor="train/test", outcome="finished") == 1
        assert collector.value("hypha.bandwidth.inbound.bytes") > 0
        assert "job" in {span.name for span in collector.spans}
        assert any(record.body.string_value.startswith("task ") for record in collector.logs)
        assert {resource["worker.region"] for resource in collector.resources} == {"eu"}
        assert {resource["service.instance.id"] for resource in collector.resources} == {lease.peer_id}


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text: str = answer.read().decode()
        return text


async def test_a_node_serves_its_metrics_to_prometheus_on_loopback(pki: Pki) -> None:
    port = free_port()
    async with (
        gateway(pki) as entry,
        stage(pki, entry, "run", telemetry_prometheus=str(port), leases={"duration_s": 60.0}) as s,
    ):
        lease = await s.scheduler.lease()
        assert await s.scheduler.dispatch(lease, train_spec(), uuid4())
        running, page = 'hypha_worker_jobs_active{executor="train/test",state="running"} 1.0', ""
        with trio.fail_after(DEADLINE_S):
            while running not in page or "hypha_network_gateways 1.0" not in page:
                page = await trio.to_thread.run_sync(scrape, f"127.0.0.1:{port}")
                await trio.sleep(0.2)  # the node answers few unauthenticated clients a second
        assert 'hypha_worker_leases_active{state="held"} 1.0' in page
        assert "process_cpu_time_seconds_total{" in page
        listening = psutil.Process(s.node.pid).net_connections(kind="tcp")
        addresses = {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN and c.laddr.port == port}
        assert addresses <= {"127.0.0.1", "::1"}
        with pytest.raises(urllib.error.HTTPError, match="404"):
            await trio.to_thread.run_sync(urllib.request.urlopen, f"http://127.0.0.1:{port}/")


async def test_a_node_whose_metrics_port_is_taken_says_so_in_one_line(pki: Pki) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with gateway(pki) as entry, stage(pki, entry, "run", telemetry_prometheus=address) as s:
            assert await s.node.ended() == 1
            assert f"error: telemetry_prometheus {address}: Address already in use." in s.node.log
            assert "Traceback" not in s.node.log


async def test_wrong_variables_of_opentelemetry_do_not_stop_a_node(pki: Pki) -> None:
    with http_collector() as collector:
        wrong = {variable: "wrong" for variable in VARIABLES if variable not in HARMLESS}
        async with (
            gateway(pki) as entry,
            stage(pki, entry, "run", environ=wrong, telemetry_endpoint=collector.endpoint) as s,
        ):
            await s.scheduler.lease()
            s.node.signal(signal.SIGTERM)
            assert await s.node.ended() == 0
            assert "Traceback" not in s.node.log
            for variable in wrong:
                assert f"{variable} " in s.node.log
        assert collector.value("hypha.worker.offers.sent") >= 1
        assert collector.logs


async def test_a_node_exports_what_the_catalogue_says_and_nothing_else(pki: Pki) -> None:
    with http_collector() as collector:
        settings = {"telemetry_endpoint": collector.endpoint, "leases": {"duration_s": 1.0}}
        often = {"OTEL_METRIC_EXPORT_INTERVAL": "500"}
        async with gateway(pki) as entry, stage(pki, entry, "run", environ=often, **settings) as s:
            await s.scheduler.advertise(wanted(Resources(gpu=99, cpu=1, memory=1, storage=1)))  # is refused
            lease = await s.scheduler.lease()
            await s.scheduler.renew(lease)
            assert await s.scheduler.dispatch(lease, train_spec(), uuid4())
            assert not await s.scheduler.dispatch(lease, train_spec(), uuid4())  # it has a job
            assert (await s.scheduler.status()).status.type == "Failed"  # its lease expires
            with trio.fail_after(DEADLINE_S):
                while EVERYTHING.keys() - collector.metrics.keys() - OTHERWISE:  # noqa: ASYNC110
                    await trio.sleep(0.1)
            s.node.signal(signal.SIGTERM)
            assert await s.node.ended() == 0
        for name, exported in collector.metrics.items():
            metric = EVERYTHING[name]
            data = exported.WhichOneof("data")
            kind = {"gauge": Kind.GAUGE, "histogram": Kind.HISTOGRAM}.get(data) or (
                Kind.COUNTER if exported.sum.is_monotonic else Kind.UP_DOWN_COUNTER
            )
            assert (exported.unit, kind) == (metric.unit, metric.kind), name
            for attributes, value in collector.points(name).items():
                assert {key for key, _ in attributes} <= metric.attributes.keys(), name
                assert value >= 0, name
        assert collector.value("hypha.worker.requests", decision="refused", reason="MoreThanCapacity") >= 1
        assert collector.value("hypha.worker.offers.ended", outcome="accepted") == 1
        assert collector.value("hypha.worker.dispatches", outcome="started") == 1
        assert collector.value("hypha.worker.dispatches", outcome="refused") == 1
        assert collector.value("hypha.worker.lease.expirations", job_state="running") == 1
        assert collector.value("hypha.worker.jobs.ended", outcome="failed") == 1
        assert collector.value("hypha.worker.job.reports", outcome="delivered") == 1
        assert collector.value("hypha.worker.memory.capacity") == 2 * 10**9


async def test_headers_from_a_file_reach_the_collector_and_show_nowhere(pki: Pki, tmp_path: Path) -> None:
    headers = tmp_path / "headers"
    headers.write_text("Authorization: Bearer s3cret\n")
    with http_collector(status=401) as collector:
        settings = {"telemetry_endpoint": collector.endpoint, "telemetry_headers_file": str(headers)}
        async with gateway(pki) as entry, stage(pki, entry, "run", **settings) as s:
            await s.scheduler.lease()
            process = psutil.Process(s.node.pid)
            shown = [*process.cmdline(), *process.environ().values()]
            s.node.signal(signal.SIGTERM)
            assert await s.node.ended() == 0
            assert "401" in s.node.log
            assert not any("s3cret" in text for text in (*shown, s.node.log))
        assert {headers["authorization"] for _, headers, _ in collector.received} == {"Bearer s3cret"}


async def test_a_node_without_its_file_of_headers_says_so_in_one_line(pki: Pki) -> None:
    settings = {"telemetry_endpoint": "http://127.0.0.1:1", "telemetry_headers_file": "missing"}
    async with gateway(pki) as entry, stage(pki, entry, "run", **settings) as s:
        assert await s.node.ended() == 1
        assert "missing: No such file or directory. Name a file that the node can read." in s.node.log
        assert "Traceback" not in s.node.log
