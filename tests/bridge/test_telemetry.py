"""What a bridge reports to its node about itself and its executor."""

from typing import Any

import httpx
import pytest

from hypha_bridge.server import BridgeServer
from support.bridge_node import FakeNode, safetensors

from .conftest import PROVIDER, SCHEDULER, SERVER, peers, until

pytestmark = pytest.mark.anyio

TRACE = "ab" * 16
ROOT = "cd" * 8
EXECUTOR_SPAN = "12" * 8


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{TRACE}-{ROOT}-01")


def spans(node: FakeNode) -> dict[str, Any]:
    """The first span of each name. Later slices, which are read ahead, do not exist."""
    found = [span for batch in node.telemetry for span in batch["spans"]]
    return {span["name"]: span for span in reversed(found)}


def metrics(node: FakeNode) -> dict[tuple[str, ...], float]:
    found = [metric for batch in node.telemetry for metric in batch["metrics"]]
    return {(metric["name"], *metric["attributes"].values()): metric["value"] for metric in found}


def span(**changes: Any) -> dict[str, Any]:
    times = {"start_ns": 10, "end_ns": 20}
    return {"name": "batch", "span_id": "ef" * 8, "parent_id": ROOT, **times, "attributes": {}} | changes


async def test_a_slice_is_a_child_of_the_executors_span_and_its_calls_name_it(
    node: FakeNode, bridge: httpx.AsyncClient, server: BridgeServer
) -> None:
    data = safetensors(100)
    node.slices["digits", 0] = data
    node.assign("digits", PROVIDER, 0)
    headers = {"traceparent": f"00-{TRACE}-{EXECUTOR_SPAN}-01"}
    reference = {"type": "scheduler", "peer": SCHEDULER, "dataset": "digits"}
    assert (await bridge.post("/resources/fetch", json=reference, headers=headers)).is_success
    await until(lambda: "slice" in spans(node) and "bridge ready" in spans(node))
    fetched = spans(node)["slice"]
    assert fetched["parent_id"] == EXECUTOR_SPAN
    assert fetched["attributes"] == {"source": "peer", "bytes": len(data), "index": 0}
    assert spans(node)["bridge ready"]["parent_id"] == ROOT
    assert ("/slices/pull", f"00-{TRACE}-{fetched['span_id']}-01") in node.traceparents
    await until(lambda: ("hypha.job.transfer", "peer", "receive") in metrics(node))
    assert metrics(node)["hypha.job.transfer", "peer", "receive"] == len(data)


async def test_a_push_to_a_peer_is_a_child_of_the_executors_span(
    node: FakeNode, bridge: httpx.AsyncClient, server: BridgeServer
) -> None:
    (server.bridge._work_dir.path / "gradient").write_bytes(b"12345")
    headers = {"traceparent": f"00-{TRACE}-{EXECUTOR_SPAN}-01"}
    body = {"resource": peers(SERVER), "path": "gradient"}
    assert (await bridge.post("/resources/send", json=body, headers=headers)).is_success
    await until(lambda: "push" in spans(node) and ("hypha.job.transfer", "peer", "transmit") in metrics(node))
    assert spans(node)["push"]["parent_id"] == EXECUTOR_SPAN
    assert metrics(node)["hypha.job.transfer", "peer", "transmit"] == 5


async def test_telemetry_of_the_executor_is_passed_on_without_the_records_that_break_a_rule(
    node: FakeNode, bridge: httpx.AsyncClient
) -> None:
    bad = [
        span(name="x" * 65),
        span(span_id="0" * 16),
        span(end_ns=5),
        span(start_ns=-1),
        span(start_ns=2**70, end_ns=2**70),
        span(attributes={f"key{n}": 1 for n in range(17)}),
        span(attributes={"text": "x" * 201}),
        span(attributes={"Bad Key": 1}),
        span(attributes={"nested": {"a": 1}}),
        "no span",
    ]
    counted = {"name": "hypha.job.transfer", "value": 8, "increase": True}
    body = {"trace_id": TRACE, "spans": [*bad, span(name="good")], "metrics": [counted, counted, {"name": "x"}]}
    assert (await bridge.post("/telemetry", json=body)).status_code == 204
    await until(lambda: "good" in spans(node))
    assert spans(node).keys() == {"good", "bridge ready"}
    assert metrics(node)[("hypha.job.transfer",)] == 16


async def test_not_a_number_and_too_many_records_are_refused(bridge: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}
    content = f'{{"trace_id": "{TRACE}", "metrics": [{{"name": "hypha.job.slices.ahead", "value": NaN}}]}}'
    answer = await bridge.post("/telemetry", content=content, headers=headers)
    assert answer.status_code in (204, 400)
    flood = {"trace_id": TRACE, "spans": [span()] * 65}
    assert (await bridge.post("/telemetry", json=flood)).status_code == 400


async def test_a_node_that_refuses_telemetry_delays_nothing(node: FakeNode, bridge: httpx.AsyncClient) -> None:
    def refuse(handler: Any) -> None:
        handler.body()
        handler.refuse(404, "no_such_call")

    node.fail_next("POST /telemetry", *[refuse] * 100)
    assert (await bridge.post("/telemetry", json={"trace_id": TRACE, "spans": [span()]})).status_code == 204
    assert (await bridge.get("/healthz")).is_success


async def test_dropped_metrics_are_counted(node: FakeNode, bridge: httpx.AsyncClient) -> None:
    body = '{"metrics": {"round": 1, "metrics": {"loss": NaN, "norm": Infinity, "samples": 8}}}'
    await bridge.post("/status/send", content=body, headers={"Content-Type": "application/json"})
    await until(lambda: ("hypha.job.metrics.dropped",) in metrics(node))
    assert metrics(node)["hypha.job.metrics.dropped",] == 2
