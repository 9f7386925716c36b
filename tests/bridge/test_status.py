"""Progress reaches the scheduler and its answer returns to the executor; the API describes itself."""

import json
from typing import Any

import httpx
import pytest

from support.bridge_node import FakeNode, break_off, unavailable

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("progress", "forwarded"),
    [
        ("update", "update"),
        ("updated", "updated"),
        ("update-received", "update-received"),
        ({"status": {"batch_size": 32}}, {"status": {"batch_size": 32}}),
        ({"status": {"batch_size": 32, "round_time": -12}}, {"status": {"batch_size": 32}}),
        ({"predicted": {"index": 3, "samples": 8}}, {"predicted": {"index": 3, "samples": 8}}),
        ({"metrics": {"round": 2, "metrics": {"loss": 0.5}}}, {"metrics": {"round": 2, "metrics": {"loss": 0.5}}}),
    ],
)
async def test_progress_is_forwarded_in_its_form_on_the_wire(
    bridge: httpx.AsyncClient, node: FakeNode, progress: Any, forwarded: Any
) -> None:
    answer = await bridge.post("/status/send", json=progress)
    assert (answer.status_code, answer.json()) == (200, {"type": "Ok"})
    assert node.reported == [forwarded]


@pytest.mark.parametrize("written", ["NaN", "Infinity", "-Infinity", "1e999", "1e40", "null"])
async def test_a_metric_that_is_no_finite_number_is_dropped_and_logged_once_and_the_report_goes_on(
    bridge: httpx.AsyncClient, node: FakeNode, caplog: pytest.LogCaptureFixture, written: str
) -> None:
    body = f'{{"metrics": {{"round": 2, "metrics": {{"loss": {written}, "samples": 8}}}}}}'
    for _ in range(2):
        answer = await bridge.post("/status/send", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()) == (200, {"type": "Ok"})
    assert node.reported == [{"metrics": {"round": 2, "metrics": {"samples": 8}}}] * 2
    [logged] = [record for record in caplog.messages if "loss" in record]
    assert "the metric loss of round 2 is not a finite number" in logged


async def test_a_metric_that_is_no_number_is_refused(bridge: httpx.AsyncClient, node: FakeNode) -> None:
    answer = await bridge.post("/status/send", json={"metrics": {"round": 2, "metrics": {"loss": "low"}}})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert node.reported == []


async def test_the_schedulers_answer_is_returned(bridge: httpx.AsyncClient, node: FakeNode) -> None:
    node.answers.put({"type": "ScheduleUpdate", "counter": 7})
    answer = await bridge.post("/status/send", json={"status": {"batch_size": 1}})
    assert answer.json() == {"type": "ScheduleUpdate", "counter": 7}


@pytest.mark.parametrize("fault", [break_off, unavailable], ids=["hung up", "unavailable"])
async def test_progress_is_retried_while_the_node_restarts(
    bridge: httpx.AsyncClient, node: FakeNode, fault: Any
) -> None:
    node.fail_next("POST /progress", fault, fault)
    assert (await bridge.post("/status/send", json="update")).json() == {"type": "Ok"}


@pytest.mark.parametrize(
    "progress",
    [
        "",
        "nope",
        3,
        None,
        [],
        {},
        {"status": {}},
        {"status": {"batch_size": -1}},
        {"status": {"batch_size": 1}, "b": 2},
    ],
)
async def test_progress_outside_the_protocol_is_refused(
    bridge: httpx.AsyncClient, node: FakeNode, progress: Any
) -> None:
    answer = await bridge.post("/status/send", json=progress)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert node.reported == []


async def test_a_body_that_is_not_json_is_refused(bridge: httpx.AsyncClient) -> None:
    answer = await bridge.post("/status/send", content=b"{", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


async def test_the_api_describes_every_call_and_its_errors(bridge: httpx.AsyncClient) -> None:
    description = (await bridge.get("/openapi.json")).json()
    calls = ["/resources/fetch", "/resources/send", "/resources/receive", "/status/send"]
    assert set(calls) < set(description["paths"])
    for call in calls:
        operation = description["paths"][call]["post"]
        assert operation["description"]
        assert {"200", "4XX", "5XX"} <= set(operation["responses"])
        content = operation["requestBody"]["content"]["application/json"]
        assert content["schema"]
        assert len(content["examples"]) > 1, "both spellings"
    fetch = json.dumps(description["components"]["schemas"]["FetchRequest"])
    assert "out_dir" in fetch
    assert "SchedulerReference" in fetch, "a bare reference will do"
    assert "text/event-stream" in json.dumps(description["paths"]["/resources/receive"])


async def test_healthz_answers(bridge: httpx.AsyncClient) -> None:
    assert (await bridge.get("/healthz")).json() == {"status": "ok"}


async def test_unknown_calls_are_answered_like_other_errors(bridge: httpx.AsyncClient) -> None:
    answer = await bridge.post("/resources/steal", json={})
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
