"""The connector API between the bridge's own client and a real network: a worker, and a peer that is all the others."""

import io
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio

from hypha_bridge.connector import Connector as Client
from hypha_bridge.errors import ConnectorError
from hypha_contracts.bridge_config import ConnectorConfig
from hypha_messages.api import API, DataAssignment, RequestData
from hypha_messages.job import JobSpec
from hypha_messages.progress import PROGRESS, Progress, ProgressResponse, ReportProgress
from hypha_messages.streams import PULL, PULL_LENGTH_BYTES, PUSH, decode_pull_header, decode_pull_length
from hypha_messages.types import Message
from hypha_network.errors import NetworkError
from hypha_network.network import Network
from hypha_network.wire.streams import Stream
from hypha_telemetry import node_metrics
from hypha_worker.connector import http_server
from hypha_worker.connector.api import Connector
from hypha_worker.connector.pushes import PushRouter
from hypha_worker.job import Job
from hypha_worker.telemetry import Telemetry
from support import jobs
from support.certs import Pki
from support.networks import direct_address, node
from support.recorded_metrics import RecordedMetrics

pytestmark = pytest.mark.anyio

PATIENCE_S = 20
TOKEN = "a" * 43
BIG = bytes(range(256)) * 40_000  # about 10 MB


@dataclass
class Peer:
    """A scheduler, data node and parameter server in one, that records what it is asked and given."""

    network: Network
    slices: dict[tuple[str, int], bytes] = field(default_factory=dict)
    answer: DataAssignment = field(default_factory=DataAssignment)
    progress_answer: ProgressResponse | None = field(default_factory=lambda: ProgressResponse(type="Continue"))
    asked: list[Message] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    end_slice: Callable[[Stream], None] = lambda stream: None
    take_push: Callable[[Stream], Awaitable[None]] | None = None
    think: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint

    def serve(self) -> None:
        self.network.handle(API, self._answer)
        self.network.handle(PROGRESS, self._answer_progress)
        self.network.handle_stream(PULL, self._send_slice)
        self.network.handle_stream(PUSH, self._take_push)

    async def _answer(self, _peer: str, request: Message) -> Message:
        self.asked.append(request)
        return self.answer

    async def _answer_progress(self, _peer: str, request: ReportProgress) -> ProgressResponse | None:
        self.asked.append(request)
        await self.think()
        return self.progress_answer

    async def _send_slice(self, _peer: str, stream: Stream) -> None:
        length = decode_pull_length(bytes(await stream.read_exactly(PULL_LENGTH_BYTES)))
        wanted = decode_pull_header(bytes(await stream.read_exactly(length)))
        await stream.send_all(self.slices.get((wanted.dataset, wanted.index), b""))
        self.end_slice(stream)

    async def _take_push(self, _peer: str, stream: Stream) -> None:
        if self.take_push:
            await self.take_push(stream)
        else:
            self.received.append(await stream.read_to_end(2**30))


@dataclass
class World:
    worker: Network
    peer: Peer
    connector: Connector
    pushes: PushRouter
    client: Client
    job: Job
    socket: Path
    tokens: dict[str, UUID]
    recorded: list[tuple[UUID, Progress]]

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call the bridge's client, which blocks."""
        return await trio.to_thread.run_sync(lambda: function(*args), abandon_on_cancel=True)

    async def refusal(self, function: Callable[..., Any], *args: Any) -> ConnectorError:
        with pytest.raises(ConnectorError) as caught:
            await self.call(function, *args)
        return caught.value


@asynccontextmanager
async def world(work_dir: Path, telemetry: Telemetry | None = None, **changes: Any) -> AsyncIterator[World]:
    pki = Pki()
    path, token_file = work_dir / "connector.sock", work_dir / "token"
    token_file.write_text(TOKEN)
    client = Client(ConnectorConfig(uds=path, token_file=token_file, deadline_s=5))
    with trio.fail_after(PATIENCE_S):
        async with node(pki, "worker") as worker, node(pki, "peer") as other, trio.open_nursery() as nursery:
            peer = Peer(other)
            peer.serve()
            await worker.dial(direct_address(other))
            pushes = PushRouter()
            job = replace(jobs.job(spec_for(other.peer_id, **changes)), scheduler=other.peer_id)
            tokens, recorded = {TOKEN: job.task_id}, list[tuple[UUID, Progress]]()

            async def authenticate(token: str) -> UUID | None:
                await trio.lowlevel.checkpoint()
                return tokens.get(token)

            connector = Connector(
                worker,
                pushes,
                nursery,
                telemetry,
                authenticate=authenticate,
                record_progress=lambda task_id, progress: recorded.append((task_id, progress)),
            )
            connector.add(job)
            worker.handle_stream(PUSH, pushes.handle)
            nursery.start_soon(http_server.serve_unix, http_server.listen_unix(path), connector.handle)
            yield World(worker, peer, connector, pushes, client, job, path, tokens, recorded)
            client.close()
            nursery.cancel_scope.cancel()


def spec_for(peer: str, **changes: Any) -> JobSpec:
    """A training job all of whose peers are this one."""
    others = {"type": "peers", "peers": [peer], "strategy": {"type": "All"}}
    data = {"type": "scheduler", "peer": peer, "dataset": "digits"}
    return jobs.train_spec(**({"data": data, "updates": others, "results": others} | changes))


async def assign(the: World, index: int, data: bytes) -> None:
    the.peer.slices["digits", index] = data
    the.peer.answer = DataAssignment(data_provider=the.peer.network.peer_id, index=index)
    await the.call(the.client.next_slice, the.peer.network.peer_id, "digits")


async def test_a_slice_is_assigned_by_the_scheduler_and_pulled_from_its_provider(work_dir: Path) -> None:
    async with world(work_dir) as the:
        await assign(the, 7, BIG)
        sink = io.BytesIO()
        await the.call(the.client.pull, the.peer.network.peer_id, "digits", 7, sink)
        assert sink.getvalue() == BIG
        assert the.peer.asked == [RequestData(dataset="digits")]


async def test_slices_and_pushes_count_by_peer_content_and_direction(work_dir: Path) -> None:
    metrics = RecordedMetrics()
    async with world(work_dir, metrics.telemetry) as the:
        peer = the.peer.network.peer_id
        await assign(the, 7, BIG)
        await the.call(the.client.pull, peer, "digits", 7, io.BytesIO())
        await assign(the, 8, b"")
        await the.refusal(the.client.pull, peer, "digits", 8, io.BytesIO())
        (work_dir / "out").write_bytes(b"out")
        with (work_dir / "out").open("rb") as file:
            await the.call(the.client.push, peer, file)
    assert metrics.of(node_metrics.SLICES) == {(peer, "delivered"): 1, (peer, "failed"): 1}
    assert metrics.of(node_metrics.TRANSFERRED) == {
        (peer, "slice", "receive"): len(BIG),
        (peer, "push", "transmit"): 3,
    }
    assert metrics.of(node_metrics.TRANSFER_RATE) == {("slice", "receive"): 1, ("push", "transmit"): 1}
    assert metrics.of(node_metrics.TRANSFERS_ACTIVE) == {("slice", "receive"): 0, ("push", "transmit"): 0}


async def test_a_slice_that_ends_with_a_reset_is_complete(work_dir: Path) -> None:
    async with world(work_dir) as the:
        await assign(the, 7, BIG)
        the.peer.end_slice = lambda stream: stream.reset()
        stalled = io.BytesIO()
        await the.call(the.client.pull, the.peer.network.peer_id, "digits", 7, stalled)
        # What had left the sender before it reset arrives; how much that was is the sender's matter, and the bridge's.
        assert BIG.startswith(stalled.getvalue())


async def test_a_slice_that_was_not_assigned_is_refused(work_dir: Path) -> None:
    async with world(work_dir) as the:
        await assign(the, 7, b"data")
        peer = the.peer.network.peer_id
        for provider, dataset, index in ((peer, "digits", 8), (peer, "other", 7), (jobs.STRANGER, "digits", 7)):
            refusal = await the.refusal(the.client.pull, provider, dataset, index, io.BytesIO())
            assert (refusal.status, refusal.code) == (403, "forbidden")


async def test_after_a_restart_slices_of_the_jobs_own_dataset_may_be_pulled(work_dir: Path) -> None:
    async with world(work_dir) as the:
        the.peer.slices["digits", 3] = b"data"
        the.connector.add(the.job, adopted=True)
        sink = io.BytesIO()
        await the.call(the.client.pull, the.peer.network.peer_id, "digits", 3, sink)
        assert sink.getvalue() == b"data"
        refusal = await the.refusal(the.client.pull, the.peer.network.peer_id, "other", 3, io.BytesIO())
        assert refusal.status == 403


async def test_a_slice_that_the_specification_names_needs_no_assignment(work_dir: Path) -> None:
    async with world(work_dir) as the:
        reference = {
            "type": "peers",
            "peers": [the.peer.network.peer_id],
            "strategy": {"type": "One"},
            "resource": {"dataset": "weights", "index": 0},
        }
        the.peer.slices["weights", 0] = b"data"
        the.connector.add(replace(the.job, spec=spec_for(the.peer.network.peer_id, data=reference)))
        sink = io.BytesIO()
        await the.call(the.client.pull, the.peer.network.peer_id, "weights", 0, sink)
        assert sink.getvalue() == b"data"


async def test_a_slice_that_the_provider_does_not_have_is_not_found(work_dir: Path) -> None:
    async with world(work_dir) as the:
        await assign(the, 7, b"")
        refusal = await the.refusal(the.client.pull, the.peer.network.peer_id, "digits", 7, io.BytesIO())
        assert (refusal.status, refusal.code) == (404, "not_found")


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [(DataAssignment(), 410, "no_slice"), (DataAssignment(error="no more"), 502, "peer_failed")],
)
async def test_a_scheduler_without_a_slice_is_an_error(
    work_dir: Path, answer: DataAssignment, status: int, code: str
) -> None:
    async with world(work_dir) as the:
        the.peer.answer = answer
        refusal = await the.refusal(the.client.next_slice, the.peer.network.peer_id, "digits")
        assert (refusal.status, refusal.code) == (status, code)


async def test_another_scheduler_is_not_asked(work_dir: Path) -> None:
    async with world(work_dir) as the:
        refusal = await the.refusal(the.client.next_slice, jobs.STRANGER, "digits")
        assert (refusal.status, refusal.code) == (403, "forbidden")


async def test_a_scheduler_that_only_the_specification_names_is_not_asked(work_dir: Path) -> None:
    async with world(work_dir) as the:
        other = replace(the.job, task_id=uuid4(), scheduler=jobs.STRANGER)
        the.tokens["other"] = other.task_id
        the.connector.add(other)
        (work_dir / "token").write_text("other")
        refusal = await the.refusal(the.client.next_slice, the.peer.network.peer_id, "digits")
        assert (refusal.status, the.peer.asked) == (403, [])


async def test_a_peer_that_cannot_be_reached_is_worth_another_attempt(work_dir: Path) -> None:
    others = {"type": "peers", "peers": [jobs.STRANGER], "strategy": {"type": "All"}}
    async with world(work_dir, updates=others) as the:
        refusal = await the.refusal(the.client.push, jobs.STRANGER, file_of(work_dir, b"data"))
        assert (refusal.status, refusal.code, refusal.retryable) == (503, "unavailable", True)


async def test_a_push_is_delivered_when_the_peer_has_read_it_completely(work_dir: Path) -> None:
    async with world(work_dir) as the:
        may_read = trio.Event()

        async def take(stream: Stream) -> None:
            await may_read.wait()
            the.peer.received.append(await stream.read_to_end(2**30))

        the.peer.take_push = take
        answered = trio.Event()

        async def push() -> None:
            await the.call(the.client.push, the.peer.network.peer_id, file_of(work_dir, b"update"))
            answered.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(push)
            with trio.move_on_after(0.2):
                await answered.wait()
            assert not answered.is_set()
            may_read.set()
        assert the.peer.received == [b"update"]


async def test_a_large_push_arrives_completely(work_dir: Path) -> None:
    async with world(work_dir) as the:
        await the.call(the.client.push, the.peer.network.peer_id, file_of(work_dir, BIG))
        assert the.peer.received == [BIG]


async def test_a_push_that_the_peer_resets_early_fails(work_dir: Path) -> None:
    async with world(work_dir) as the:

        async def refuse(stream: Stream) -> None:
            stream.reset()
            raise NetworkError("refused")

        the.peer.take_push = refuse
        refusal = await the.refusal(the.client.push, the.peer.network.peer_id, file_of(work_dir, BIG))
        assert (refusal.status, refusal.code) == (502, "peer_failed")


async def test_even_a_push_that_the_peer_resets_after_reading_it_fails(work_dir: Path) -> None:
    async with world(work_dir) as the:

        async def take(stream: Stream) -> None:
            the.peer.received.append(await stream.read_to_end(2**30))
            stream.reset()

        the.peer.take_push = take
        refusal = await the.refusal(the.client.push, the.peer.network.peer_id, file_of(work_dir, b"update"))
        assert (refusal.code, refusal.retryable) == ("peer_failed", True)
        assert "did not take all" in refusal.detail


async def test_even_a_small_push_that_no_job_of_the_peer_takes_fails(work_dir: Path) -> None:
    async with world(work_dir) as the:
        the.peer.take_push = partial(PushRouter().handle, the.worker.peer_id)
        refusal = await the.refusal(the.client.push, the.peer.network.peer_id, file_of(work_dir, b"update"))
        assert (refusal.code, refusal.retryable) == ("peer_failed", True)
        # Whether the peer's refusal comes while the file is still being sent is luck.
        assert "did not take all" in refusal.detail or "reset by the peer" in refusal.detail


@pytest.mark.parametrize("end", ["killed", "stopped"])
@pytest.mark.parametrize("_again", range(4))  # whether the end of the connection or of the stream is seen first is luck
async def test_a_push_fails_if_the_peer_stops_before_a_job_has_received_it(
    work_dir: Path, end: str, _again: int
) -> None:
    async with world(work_dir) as the:
        arrived = trio.Event()

        async def hold(stream: Stream) -> None:
            await stream.read_to_end(2**30)
            arrived.set()
            await trio.sleep_forever()

        async def end_peer() -> None:
            await arrived.wait()
            (connection,) = the.peer.network._host.connections[the.worker.peer_id]
            if end == "killed":
                await connection.muxed.secured._raw.close()  # type: ignore[attr-defined]
            else:
                connection.close()

        the.peer.take_push = hold
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_peer)
            refusal = await the.refusal(the.client.push, the.peer.network.peer_id, file_of(work_dir, b"update"))
        assert refusal.retryable


async def test_a_broken_push_between_two_jobs_of_a_worker_affects_nothing_else(work_dir: Path) -> None:
    async with world(work_dir) as the:
        own = {"type": "peers", "peers": [the.worker.peer_id], "strategy": {"type": "All"}}
        the.connector.add(replace(the.job, spec=spec_for(the.peer.network.peer_id, updates=own, results=own)))
        stream = await trio.open_unix_socket(the.socket)
        head = f"POST /pushes?peer={the.worker.peer_id} HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer {TOKEN}\r\n"
        await stream.send_all(f"{head}Content-Length: 100\r\n\r\nabc".encode())
        await the.call(the.client.progress, "update")  # by now the node has seen the request before
        await stream.aclose()
        assert json.loads(await the.call(the.client.progress, "update")) == {"type": "Continue"}


async def test_a_push_to_a_peer_that_the_job_does_not_name_is_refused(work_dir: Path) -> None:
    async with world(work_dir) as the:
        refusal = await the.refusal(the.client.push, jobs.STRANGER, file_of(work_dir, b"data"))
        assert (refusal.status, refusal.code) == (403, "forbidden")


async def test_a_refused_large_push_gets_an_answer(work_dir: Path) -> None:
    async with world(work_dir) as the:
        refusal = await the.refusal(the.client.push, jobs.STRANGER, file_of(work_dir, BIG))
        assert (refusal.status, refusal.code) == (403, "forbidden")


async def test_a_job_pushes_to_another_job_of_the_same_worker(work_dir: Path) -> None:
    async with world(work_dir) as the:
        own = {"type": "peers", "peers": [the.worker.peer_id], "strategy": {"type": "All"}}
        the.connector.add(replace(the.job, spec=spec_for(the.peer.network.peer_id, updates=own, results=own)))
        sink = io.BytesIO()
        delivered = []

        async def push() -> None:
            await the.call(the.client.push, the.worker.peer_id, file_of(work_dir, BIG))
            delivered.append(len(sink.getvalue()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(push)
            assert await the.call(the.client.take_push, lambda _: sink) == the.worker.peer_id
        assert sink.getvalue() == BIG
        assert delivered


async def test_a_job_cannot_push_to_the_job_of_another_scheduler_on_the_same_worker(work_dir: Path) -> None:
    async with world(work_dir) as the:
        own = {"type": "peers", "peers": [the.worker.peer_id], "strategy": {"type": "All"}}
        the.connector.add(jobs.job(jobs.aggregate_spec([the.worker.peer_id])))
        sender = replace(jobs.job(jobs.train_spec(updates=own)), scheduler=jobs.STRANGER)
        the.tokens["sender"] = sender.task_id
        the.connector.add(sender)
        (work_dir / "token").write_text("sender")
        with file_of(work_dir, b"an update") as file:
            refusal = await the.refusal(the.client.push, the.worker.peer_id, file)
        assert refusal.status == 502


async def test_a_push_to_the_same_worker_that_no_job_takes_fails(work_dir: Path) -> None:
    async with world(work_dir) as the:
        own = {"type": "peers", "peers": [the.worker.peer_id], "strategy": {"type": "All"}}
        the.connector.add(replace(the.job, spec=spec_for(the.peer.network.peer_id, updates=own)))
        refusal = await the.refusal(the.client.push, the.worker.peer_id, file_of(work_dir, BIG))
        assert (refusal.status, refusal.code) == (502, "peer_failed")


async def test_a_push_of_a_peer_reaches_the_job(work_dir: Path) -> None:
    async with world(work_dir) as the:
        sink = io.BytesIO()

        async def push() -> None:
            stream = await the.peer.network.open_stream(the.worker.peer_id, PUSH)
            await stream.send_all(BIG)
            await stream.send_eof()
            assert await stream.receive_some() == b""
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(push)
            sender = await the.call(the.client.take_push, lambda _: sink)
        assert sender == the.peer.network.peer_id
        assert sink.getvalue() == BIG


async def test_a_broken_push_breaks_the_bridges_call(work_dir: Path) -> None:
    async with world(work_dir) as the:

        async def push() -> None:
            stream = await the.peer.network.open_stream(the.worker.peer_id, PUSH)
            await stream.send_all(BIG)
            stream.reset()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(push)
            refusal = await the.refusal(the.client.take_push, lambda _: io.BytesIO())
        assert refusal.status == 503


async def test_no_push_within_the_long_poll_is_no_error(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypha_worker.connector.api.TAKE_PUSH_S", 0.05)
    async with world(work_dir) as the:
        assert await the.call(the.client.take_push, lambda _: io.BytesIO()) is None


async def test_a_bridge_that_stops_waiting_loses_no_push(work_dir: Path) -> None:
    async with world(work_dir) as the:
        impatient = socket.socket(socket.AF_UNIX)
        impatient.connect(str(the.socket))
        impatient.sendall(f"GET /pushes HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        await the.call(the.client.progress, "update")  # by now the node has seen the request before
        impatient.close()

        async def push() -> None:
            stream = await the.peer.network.open_stream(the.worker.peer_id, PUSH)
            await stream.send_all(b"update")
            await stream.send_eof()

        sink = io.BytesIO()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(push)
            await the.call(the.client.take_push, lambda _: sink)
        assert sink.getvalue() == b"update"


async def test_progress_goes_to_the_scheduler_and_its_answer_comes_back(work_dir: Path) -> None:
    async with world(work_dir) as the:
        the.peer.progress_answer = ProgressResponse(type="ScheduleUpdate", counter=5)
        answer = await the.call(the.client.progress, {"status": {"batch_size": 8, "round_time": 12.5}})
        assert json.loads(answer) == {"type": "ScheduleUpdate", "counter": 5}
        (report,) = the.peer.asked
        assert isinstance(report, ReportProgress)
        assert report.job_id == the.job.spec.job_id
        assert report.progress.status is not None
        assert report.progress.status.batch_size == 8


async def test_a_stopping_node_passes_on_pending_answers_and_refuses_new_calls(work_dir: Path) -> None:
    async with world(work_dir) as the, trio.open_nursery() as nursery:
        the.peer.progress_answer = ProgressResponse(type="ScheduleUpdate", counter=2)
        asked, decided, stopped, answers = trio.Event(), trio.Event(), trio.Event(), list[Any]()

        async def think() -> None:
            asked.set()
            await decided.wait()

        async def report() -> None:
            answers.append(json.loads(await the.call(the.client.progress, {"status": {"batch_size": 8}})))

        async def stop() -> None:
            await the.connector.stop()
            stopped.set()

        the.peer.think = think
        nursery.start_soon(report)
        await asked.wait()
        nursery.start_soon(stop)
        refusal = await the.refusal(the.client.next_slice, the.peer.network.peer_id, "digits")
        assert (refusal.status, refusal.retryable) == (503, True)
        assert not stopped.is_set()
        decided.set()
        await stopped.wait()
    assert answers == [{"type": "ScheduleUpdate", "counter": 2}]


async def test_progress_repeated_without_an_answer_counts_once(work_dir: Path) -> None:
    async with world(work_dir) as the:
        the.peer.progress_answer = None
        refusal = await the.refusal(the.client.progress, "update")
        assert (refusal.code, refusal.retryable) == ("peer_failed", True)
        the.peer.progress_answer = ProgressResponse(type="Continue")
        await the.call(the.client.progress, "update")
        assert [task_id for task_id, _ in the.recorded] == [the.job.task_id]


@pytest.mark.parametrize("progress", [{"status": {"batch_size": -1}}, "no such stage", [], {}, 12])
async def test_invalid_progress_is_refused(work_dir: Path, progress: Any) -> None:
    async with world(work_dir) as the:
        refusal = await the.refusal(the.client.progress, progress)
        assert (refusal.status, refusal.code, refusal.retryable) == (422, "invalid", False)
        assert the.peer.asked == []


@pytest.mark.parametrize("token", ["", "b" * 43, TOKEN[:-1], TOKEN + "a"])
async def test_another_token_is_refused(work_dir: Path, token: str) -> None:
    async with world(work_dir) as the:
        (work_dir / "token").write_text(token)
        refusal = await the.refusal(the.client.progress, "update")
        assert (refusal.status, refusal.code) == (401, "unauthorized")


async def test_the_token_of_a_job_that_ended_is_refused(work_dir: Path) -> None:
    async with world(work_dir) as the:
        the.connector.remove(the.job.task_id)
        refusal = await the.refusal(the.client.progress, "update")
        assert refusal.status == 401


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("GET /nothing HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer {token}\r\n\r\n", 404),
        ("POST /progress HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer {token}\r\nContent-Length: 3\r\n\r\n{{{{{{", 400),
        ("POST /progress HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer {token}\r\nContent-Length: 9999999\r\n\r\n", 413),
        ("GET /pushes HTTP/1.1\r\nHost: n\r\nAuthorization: Basic {token}\r\n\r\n", 401),
        ("GET /pushes HTTP/1.1\r\nHost: n\r\n\r\n", 401),
    ],
)
async def test_an_invalid_request_is_refused_with_its_reason(work_dir: Path, request_text: str, status: int) -> None:
    async with world(work_dir) as the:
        stream = await trio.open_unix_socket(the.socket)
        text = request_text.format(token=TOKEN).encode()
        await stream.send_all(text + b" " * (http_server._MAX_JSON_BYTES + 1 if status == 413 else 0))
        answer = b""
        while data := await stream.receive_some():
            answer += data
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert json.loads(body).keys() == {"error", "detail"}


async def test_the_calls_of_one_job_are_limited_and_do_not_block_other_jobs(work_dir: Path) -> None:
    async with world(work_dir) as the:
        other = replace(the.job, task_id=uuid4())
        the.tokens["other"] = other.task_id
        the.connector.add(other)
        text = f"GET /pushes HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        waiting = [await trio.open_unix_socket(the.socket) for _ in range(64)]
        for stream in waiting:
            await stream.send_all(text)
        refusal = await the.refusal(the.client.progress, "update")
        assert (refusal.status, refusal.retryable) == (503, True)
        (work_dir / "token").write_text("other")
        assert json.loads(await the.call(the.client.progress, "update")) == {"type": "Continue"}
        for stream in waiting:
            await stream.aclose()


async def test_a_job_that_calls_too_often_waits_and_other_jobs_do_not(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypha_worker.connector.api._CALLS_PER_S", 0.01)
    monkeypatch.setattr("hypha_worker.connector.api._MAX_CALLS_AT_ONCE", 3)
    async with world(work_dir) as the:
        other = replace(the.job, task_id=uuid4())
        the.tokens["other"] = other.task_id
        the.connector.add(other)
        for _ in range(3):
            await the.call(the.client.progress, "update")
        text = f"POST /progress HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 8\r\n\r\n"
        async with await trio.open_unix_socket(the.socket) as waiting:
            await waiting.send_all(text.encode() + b'"update"')
            (work_dir / "token").write_text("other")
            await the.call(the.client.progress, "update")
            with trio.move_on_after(0.1) as scope:
                await waiting.receive_some()
            assert scope.cancelled_caught


async def test_invalid_bytes_end_only_their_connection(work_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with world(work_dir) as the:
        for garbage in (
            b"\0" * 100,
            b"GET\r\n\r\n",
            struct.pack("<Q", 2**60),
            b"POST /pushes HTTP/9.9\r\n\r\n",
            b"GET //[ HTTP/1.1\r\nHost: n\r\n\r\n",
        ):
            stream = await trio.open_unix_socket(the.socket)
            await stream.send_all(garbage)
            await stream.send_eof()
            while await stream.receive_some():
                pass
        assert json.loads(await the.call(the.client.progress, "update")) == {"type": "Continue"}
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_only_the_owner_may_use_the_socket_and_it_is_removed_with_the_node(work_dir: Path) -> None:
    async with world(work_dir) as the:
        assert the.socket.stat().st_mode & 0o777 == 0o600
    assert not (work_dir / "connector.sock").exists()


def file_of(work_dir: Path, data: bytes) -> Any:
    path = work_dir / "file"
    path.write_bytes(data)
    return path.open("rb")
