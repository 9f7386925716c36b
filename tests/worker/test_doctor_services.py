"""Each fault of a service that jobs and node use is caused for real, and its check finds it and names the remedy."""

import socket
from email.utils import formatdate
from pathlib import Path
from time import time

import pytest

from hypha_worker.doctor.services import judge_clock
from support.certs import Pki
from support.examined import examine, http_server, problem, write_config

pytestmark = pytest.mark.anyio


async def test_a_hub_that_does_not_answer_is_a_failure(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki)
    found = await problem(path, "sources.hub", {"HF_ENDPOINT": "http://127.0.0.1:1"})
    assert (found.mark, found.remedy.startswith("Correct HF_ENDPOINT")) == ("failure", True)
    assert [finding.mark for finding in await examine(path, "sources.hub", {})] == ["skipped"]


async def test_a_token_that_the_hub_refuses_is_a_failure_and_is_not_shown(directory: Path, pki: Pki) -> None:
    with http_server(401) as url:
        executor = {"env": {"HF_TOKEN": "hf_s3cret", "HF_ENDPOINT": url}}
        found = await problem(write_config(directory, pki, executor=executor), "sources.hub", {})
    assert (found.mark, found.remedy) == ("failure", "Make a new token that may read.")
    assert "s3cret" not in str(found)


async def test_a_hub_that_answers_is_ok(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki)
    with http_server() as url:
        assert [finding.mark for finding in await examine(path, "sources.hub", {"HF_ENDPOINT": url})] == ["ok"]
        path = write_config(directory, pki, executor={"env": {"HF_TOKEN": "hf_right", "HF_ENDPOINT": url}})
        [found] = await examine(path, "sources.hub", {})
    assert found.message == f"the model hub {url} answers and knows the token"


async def test_a_token_that_jobs_do_not_get_is_a_warning(directory: Path, pki: Pki) -> None:
    with http_server() as url:
        found = await problem(write_config(directory, pki), "sources.hub", {"HF_ENDPOINT": url, "HF_TOKEN": "hf_right"})
    assert (found.mark, "is not given to jobs" in found.message) == ("warning", True)


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "Correct telemetry_headers."), (404, "Correct telemetry_endpoint: without a path")]
)
async def test_a_collector_that_refuses_data_is_a_failure(directory: Path, pki: Pki, status: int, remedy: str) -> None:
    with http_server(status) as url:
        path = write_config(directory, pki, telemetry_endpoint=url, telemetry_headers="authorization=s3cret")
        found = await problem(path, "telemetry.collector")
    assert found.remedy.startswith(remedy)
    assert "s3cret" not in str(found)


async def test_headers_for_the_collector_that_cannot_be_used_are_a_failure(directory: Path, pki: Pki) -> None:
    (directory / "headers").write_text("no header")
    url = "http://127.0.0.1:1"
    path = write_config(directory, pki, telemetry_endpoint=url, telemetry_headers_file=str(directory / "headers"))
    assert "headers:1: not a header" in (await problem(path, "telemetry.collector")).message


async def test_a_collector_that_only_a_variable_names_is_asked(directory: Path, pki: Pki) -> None:
    with http_server() as url:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": url}
        [found] = await examine(write_config(directory, pki), "telemetry.collector", environment)
    assert (found.mark, url in found.message) == ("ok", True)


async def test_a_collector_that_does_not_answer_is_a_failure(directory: Path, pki: Pki) -> None:
    for protocol, port in (("http/protobuf", 4318), ("grpc", 4317)):
        path = write_config(directory, pki, telemetry_endpoint="http://127.0.0.1:1", telemetry_protocol=protocol)
        assert f"port {port}" in (await problem(path, "telemetry.collector")).remedy


async def test_a_collector_that_takes_data_is_ok(directory: Path, pki: Pki) -> None:
    with http_server() as url, socket.create_server(("127.0.0.1", 0)) as grpc:
        for endpoint, protocol in ((url, "http/protobuf"), (f"http://127.0.0.1:{grpc.getsockname()[1]}", "grpc")):
            path = write_config(directory, pki, telemetry_endpoint=endpoint, telemetry_protocol=protocol)
            assert [finding.mark for finding in await examine(path, "telemetry.collector")] == ["ok"]


@pytest.mark.parametrize(("ahead_s", "words"), [(3600, "s behind the telemetry"), (-3600, "s ahead of the telemetry")])
async def test_a_clock_that_differs_from_the_collectors_is_a_failure(
    directory: Path, pki: Pki, ahead_s: float, words: str
) -> None:
    with http_server(Date=formatdate(time() + ahead_s, usegmt=True)) as url:
        found = await problem(write_config(directory, pki, telemetry_endpoint=url), "machine.clock")
    assert found.mark == "failure"
    assert words in found.message
    assert "chrony" in found.remedy
    with http_server() as url:
        [found] = await examine(write_config(directory, pki, telemetry_endpoint=url), "machine.clock")
    assert found.message == "the clock agrees with the telemetry collector"


def test_a_clock_that_no_service_keeps_is_a_warning() -> None:
    assert [finding.mark for finding in judge_clock(False, {})] == ["warning"]
    assert [finding.mark for finding in judge_clock(True, {})] == ["ok"]
    assert [finding.mark for finding in judge_clock(None, {})] == ["skipped"]
