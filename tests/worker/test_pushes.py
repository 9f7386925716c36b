"""Which job gets a push, who waits, and what is refused."""

import json
import struct
from uuid import UUID, uuid4

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from hypha_worker.connector import pushes
from hypha_worker.connector.pushes import PushRouter, PushStream

pytestmark = pytest.mark.anyio

ALICE, BOB = "alice", "bob"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Waits take no time."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


class Pushed:
    """A push stream made of pieces; None stands for a peer that says nothing more and does not end."""

    def __init__(self, *pieces: bytes | None) -> None:
        self.pieces = list(pieces)
        self.reset_seen = False
        self.read_bytes = 0

    async def receive_some(self, max_bytes: int | None = None, /) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self.pieces:
            return b""
        piece = self.pieces.pop(0)
        if piece is None:
            await trio.sleep_forever()
        if max_bytes is not None and len(piece) > max_bytes:
            self.pieces.insert(0, piece[max_bytes:])
            piece = piece[:max_bytes]
        self.read_bytes += len(piece)
        return piece

    def push_back(self, data: bytes, /) -> None:
        if data:
            self.pieces.insert(0, data)

    def reset(self) -> None:
        self.reset_seen = True


def labelled(job_id: object, payload: bytes = b"payload") -> bytes:
    header = json.dumps({"__metadata__": {"job_id": str(job_id)}}).encode()
    return struct.pack("<Q", len(header)) + header + payload


class Inbox:
    """What a job received."""

    def __init__(self) -> None:
        self.pushes: list[tuple[str, bytes]] = []

    async def deliver(self, peer: str, stream: PushStream) -> None:
        data = b""
        while piece := await stream.receive_some():
            data += piece
        self.pushes.append((peer, data))


def router(scheduler: str = "scheduler", **jobs: tuple[UUID, set[str]]) -> tuple[PushRouter, dict[str, UUID]]:
    """A router with jobs of one scheduler, each by name: its label and its senders."""
    made = PushRouter()
    tasks = {name: uuid4() for name in jobs}
    for name, (label, senders) in jobs.items():
        made.add(tasks[name], scheduler, str(label), frozenset(senders))
    return made, tasks


async def push(made: PushRouter, peer: str, data: bytes) -> Pushed:
    """A push from its beginning to its end."""
    stream = Pushed(data)
    await made.handle(peer, stream)
    return stream


@pytest.mark.parametrize("data", [b"", b"x", b"no header at all", labelled("other"), b"\xff" * 8, labelled(1)[:-20]])
async def test_the_only_job_that_names_the_sender_gets_a_push_without_another_label(data: bytes) -> None:
    made, tasks = router(job=(UUID(int=1), {ALICE}))
    inbox = Inbox()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.handle, ALICE, Pushed(data))
        taken = await made.take(tasks["job"], inbox.deliver, 1) if b"other" not in data else None
    assert inbox.pushes == ([(ALICE, data)] if taken else [])


async def test_a_sender_that_no_job_names_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    made, _ = router(job=(uuid4(), {ALICE}))
    stream = await push(made, BOB, b"data")
    assert stream.reset_seen
    assert stream.read_bytes == 0
    assert "bob: refused a push: no job of this worker names it" in caplog.text


async def test_refusals_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    made, _ = router(job=(uuid4(), {ALICE}))
    for _ in range(100):
        await push(made, BOB, b"data")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("mine", ["first", "second"])
async def test_the_label_selects_one_of_several_jobs(mine: str) -> None:
    jobs = {"first": uuid4(), "second": uuid4()}
    made, tasks = router(**{name: (label, {ALICE}) for name, label in jobs.items()})
    inboxes = {name: Inbox() for name in jobs}
    async with trio.open_nursery() as nursery:
        for name in jobs:
            nursery.start_soon(made.take, tasks[name], inboxes[name].deliver, 0.05)
        await trio.testing.wait_all_tasks_blocked()
        await push(made, ALICE, labelled(jobs[mine]))
    assert [name for name, inbox in inboxes.items() if inbox.pushes] == [mine]


async def test_a_push_labelled_for_a_job_that_has_ended_is_refused() -> None:
    made, _ = router(job=(uuid4(), {ALICE}))
    assert (await push(made, ALICE, labelled(uuid4()))).reset_seen


async def test_the_job_that_has_waited_longest_gets_an_unlabelled_push() -> None:
    made, tasks = router(first=(uuid4(), {ALICE}), second=(uuid4(), {ALICE}))
    first, second = Inbox(), Inbox()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.take, tasks["second"], second.deliver, 10)
        await trio.sleep(1)
        nursery.start_soon(made.take, tasks["first"], first.deliver, 10)
        await trio.sleep(1)
        await push(made, ALICE, b"one")
        await push(made, ALICE, b"two")
    assert (first.pushes, second.pushes) == ([(ALICE, b"two")], [(ALICE, b"one")])


async def test_a_job_that_waits_with_several_calls_does_not_get_the_next_push_before_others() -> None:
    made, tasks = router(first=(uuid4(), {ALICE}), second=(uuid4(), {ALICE}))
    first, second = Inbox(), Inbox()
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(made.take, tasks["first"], first.deliver, 10)
        await trio.sleep(1)
        nursery.start_soon(made.take, tasks["second"], second.deliver, 10)
        await trio.sleep(1)
        await push(made, ALICE, b"one")
        await push(made, ALICE, b"two")
    assert (first.pushes, second.pushes) == ([(ALICE, b"one")], [(ALICE, b"two")])


async def test_a_repeated_poll_keeps_the_jobs_place_in_the_queue() -> None:
    made, tasks = router(first=(uuid4(), {ALICE}), second=(uuid4(), {ALICE}))
    first, second = Inbox(), Inbox()
    assert not await made.take(tasks["first"], first.deliver, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.take, tasks["second"], second.deliver, 10)
        await trio.sleep(1)
        nursery.start_soon(made.take, tasks["first"], first.deliver, 5)
        await trio.sleep(1)
        await push(made, ALICE, b"one")
        assert first.pushes == [(ALICE, b"one")]
        await push(made, ALICE, b"two")


def two_schedulers(second_label: int = 2) -> tuple[PushRouter, UUID, UUID]:
    """A router with two jobs that name Alice. The first one has label 1."""
    made, first, second = PushRouter(), uuid4(), uuid4()
    made.add(first, "first scheduler", str(UUID(int=1)), frozenset({ALICE}))
    made.add(second, "second scheduler", str(UUID(int=second_label)), frozenset({ALICE, BOB}))
    return made, first, second


async def take_all(made: PushRouter, task: UUID, inbox: Inbox) -> None:
    while await made.take(task, inbox.deliver, 1):
        pass


@pytest.mark.parametrize("data", [b"unlabelled", labelled(UUID(int=1))], ids=["unlabelled", "labelled"])
@pytest.mark.parametrize("second_label", [1, 2], ids=["copied", "own"])
async def test_a_second_scheduler_that_names_the_same_sender_gets_none_of_the_first_ones_pushes(
    data: bytes, second_label: int
) -> None:
    made, first, second = two_schedulers(second_label)
    mine, theirs = Inbox(), Inbox()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(take_all, made, second, theirs)
        nursery.start_soon(take_all, made, first, mine)
        for _ in range(50):
            await push(made, ALICE, data)
    assert (len(mine.pushes), theirs.pushes) == (50, [])


async def test_a_push_labelled_for_the_job_of_the_second_scheduler_reaches_that_job() -> None:
    made, _, second = two_schedulers()
    inbox = Inbox()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.handle, ALICE, Pushed(labelled(UUID(int=2))))
        assert await made.take(second, inbox.deliver, 1)
    assert len(inbox.pushes) == 1


async def test_a_scheduler_keeps_a_sender_only_while_a_job_that_names_it_lives() -> None:
    made, first, second = two_schedulers()
    inbox = Inbox()
    made.remove(first)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.handle, ALICE, Pushed(b"unlabelled"))
        assert await made.take(second, inbox.deliver, 1)


async def test_a_push_that_began_for_a_job_that_ended_does_not_go_to_another_scheduler() -> None:
    made, first, second = two_schedulers()
    slow, waiting = Pushed(None), Pushed(b"unlabelled")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.handle, ALICE, slow)
        nursery.start_soon(made.handle, ALICE, waiting)
        await trio.testing.wait_all_tasks_blocked()
        made.remove(first)
        assert not await made.take(second, Inbox().deliver, 100)
    assert waiting.reset_seen


async def test_a_push_within_the_node_reaches_only_jobs_of_the_sending_jobs_scheduler() -> None:
    made, _, second = two_schedulers()
    inbox, refused = Inbox(), Pushed(b"unlabelled")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.handle, ALICE, Pushed(b"unlabelled"), "second scheduler")
        assert await made.take(second, inbox.deliver, 1)
        await made.handle(BOB, refused, "first scheduler")
    assert refused.reset_seen


async def test_the_waiting_pushes_of_one_scheduler_displace_none_of_another() -> None:
    made, honest, hostile = PushRouter(), uuid4(), uuid4()
    made.add(hostile, "hostile scheduler", "1", frozenset(f"peer {number}" for number in range(100)))
    made.add(honest, "scheduler", "2", frozenset({ALICE}))
    mine, theirs = Pushed(b"mine"), [Pushed(b"data") for _ in range(1000)]
    inbox = Inbox()
    async with trio.open_nursery() as nursery:
        for number, stream in enumerate(theirs):
            nursery.start_soon(made.handle, f"peer {number % 100}", stream)
            if number == 500:
                nursery.start_soon(made.handle, ALICE, mine)
        await trio.testing.wait_all_tasks_blocked()
        assert len(made._places._held) == pushes._MAX_WAITING
        assert await made.take(honest, inbox.deliver, 1)
        made.remove(hostile)
    assert inbox.pushes == [(ALICE, b"mine")]


async def test_a_peer_that_pushes_too_often_is_refused_until_later() -> None:
    made, tasks = router(job=(uuid4(), {ALICE}))
    inbox = Inbox()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_all, made, tasks["job"], inbox)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(200):
            await push(made, ALICE, b"data")
        accepted = len(inbox.pushes)
        await trio.sleep(0.5)
        await push(made, ALICE, b"data")
    assert accepted == pushes._MAX_PUSHES_AT_ONCE
    assert len(inbox.pushes) == accepted + 1


class Trickle(Pushed):
    """A push that sends some bytes in each interval."""

    def __init__(self, size_bytes: int, interval_s: float, pieces: int) -> None:
        super().__init__(*[bytes(size_bytes)] * pieces)
        self.interval_s = interval_s

    async def receive_some(self, max_bytes: int | None = None, /) -> bytes:
        await trio.sleep(self.interval_s)
        return await super().receive_some(max_bytes)


async def receive(stream: PushStream, pause_s: float = 0) -> int:
    size = 0
    async for piece in pushes.pieces(stream):
        size += len(piece)
        await trio.sleep(pause_s)
    return size


async def test_a_push_below_the_least_rate_is_ended() -> None:
    slower = pushes._LEAST_BYTES // 61
    with pytest.raises(trio.TooSlowError):
        await receive(Trickle(slower, 1, 1000))
    assert trio.current_time() <= pushes._LEAST_BYTES_WITHIN_S + 1
    assert await receive(Trickle(pushes._LEAST_BYTES // 50, 1, 1000)) == 1000 * (pushes._LEAST_BYTES // 50)


async def test_a_job_that_takes_data_slowly_does_not_end_a_push() -> None:
    assert await receive(Trickle(100_000, 0.1, 20), pause_s=100) == 2_000_000


async def test_little_of_a_long_header_is_read() -> None:
    made, _ = router(job=(UUID(int=1), {ALICE}))
    stream = Pushed(struct.pack("<Q", 2**40) + b" " * 2**20, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.handle, ALICE, stream)
        await trio.testing.wait_all_tasks_blocked()
        assert stream.read_bytes == 8 + pushes._MAX_LABEL_BYTES
        nursery.cancel_scope.cancel()


async def test_only_the_header_of_a_waiting_push_is_read() -> None:
    made, tasks = router(job=(UUID(int=1), {ALICE}))
    header = labelled(UUID(int=1), b"")
    stream = Pushed(header, b"x" * 1000)
    inbox = Inbox()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.handle, ALICE, stream)
        await trio.testing.wait_all_tasks_blocked()
        assert stream.read_bytes == len(header)
        await made.take(tasks["job"], inbox.deliver, 1)
    assert inbox.pushes == [(ALICE, header + b"x" * 1000)]
    assert not stream.reset_seen


async def test_pushes_are_taken_in_order_of_arrival() -> None:
    made, tasks = router(job=(uuid4(), {ALICE, BOB}))
    inbox = Inbox()
    async with trio.open_nursery() as nursery:
        for peer in (BOB, ALICE, BOB):
            nursery.start_soon(made.handle, peer, Pushed(peer.encode()))
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            assert await made.take(tasks["job"], inbox.deliver, 1)
    assert [peer for peer, _ in inbox.pushes] == [BOB, ALICE, BOB]


async def test_a_limited_number_of_one_peers_pushes_waits() -> None:
    made, tasks = router(job=(uuid4(), {ALICE, BOB}))
    inbox = Inbox()
    async with trio.open_nursery() as nursery:
        for _ in range(pushes._MAX_WAITING_PER_PEER):
            nursery.start_soon(made.handle, ALICE, Pushed(b"data"))
        await trio.testing.wait_all_tasks_blocked()
        assert (await push(made, ALICE, b"one too many")).reset_seen
        nursery.start_soon(made.handle, BOB, Pushed(b"data"))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(pushes._MAX_WAITING_PER_PEER + 1):
            assert await made.take(tasks["job"], inbox.deliver, 1)
    assert inbox.pushes[-1] == (BOB, b"data")
    assert len(made._places._held) == 0


async def test_a_peer_whose_pushes_stall_blocks_no_other_peer() -> None:
    made, tasks = router(job=(uuid4(), {ALICE, BOB}))
    inbox = Inbox()
    async with trio.open_nursery() as nursery:
        for _ in range(pushes.MAX_TAKEN_PER_PEER + 2):
            nursery.start_soon(made.handle, ALICE, Pushed(b"a part that is long enough", None))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(made.handle, BOB, Pushed(b"whole"))
        for _ in range(pushes.MAX_TAKEN_PER_PEER + 1):
            nursery.start_soon(made.take, tasks["job"], inbox.deliver, 10)
        await trio.testing.wait_all_tasks_blocked()
        assert inbox.pushes == [(BOB, b"whole")]
        nursery.cancel_scope.cancel()


async def test_after_broken_pushes_the_next_one_of_the_same_peer_is_taken() -> None:
    made, tasks = router(job=(uuid4(), {ALICE}))
    inbox = Inbox()

    async def break_off(_: str, __: PushStream) -> None:
        raise ValueError("the bridge has gone")

    async with trio.open_nursery() as nursery:
        for _ in range(2 * pushes.MAX_TAKEN_PER_PEER):
            nursery.start_soon(made.handle, ALICE, Pushed(b"data"))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2 * pushes.MAX_TAKEN_PER_PEER):
            with pytest.raises(ValueError, match="the bridge has gone"):
                await made.take(tasks["job"], break_off, 1)
        nursery.start_soon(made.handle, ALICE, Pushed(b"data"))
        assert await made.take(tasks["job"], inbox.deliver, 1)


async def test_a_push_that_no_job_takes_is_refused_after_the_timeout() -> None:
    made, _ = router(job=(uuid4(), {ALICE}))
    assert (await push(made, ALICE, b"data")).reset_seen
    assert trio.current_time() > 800


async def test_a_push_without_a_header_is_refused_after_the_timeout() -> None:
    made, _ = router(job=(uuid4(), {ALICE}))
    stream = Pushed(b"abc", None)
    await made.handle(ALICE, stream)
    assert stream.reset_seen


async def test_the_end_of_a_job_refuses_its_waiting_pushes() -> None:
    made, tasks = router(job=(uuid4(), {ALICE}))
    stream = Pushed(b"data")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.handle, ALICE, stream)
        await trio.testing.wait_all_tasks_blocked()
        made.remove(tasks["job"])
    assert stream.reset_seen
    assert not await made.take(tasks["job"], Inbox().deliver, 1)


async def test_a_failed_delivery_resets_the_push() -> None:
    made, tasks = router(job=(uuid4(), {ALICE}))
    stream = Pushed(b"data")

    async def fail(_peer: str, _stream: PushStream) -> None:
        raise OSError("the bridge is gone")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.handle, ALICE, stream)
        with pytest.raises(OSError, match="the bridge is gone"):
            await made.take(tasks["job"], fail, 1)
    assert stream.reset_seen


async def test_a_push_whose_connection_ends_gets_no_answer() -> None:
    made, _ = router(job=(uuid4(), {ALICE}))
    stream = Pushed(b"data")
    async with trio.open_nursery() as connection:
        connection.start_soon(made.handle, ALICE, stream)
        await trio.testing.wait_all_tasks_blocked()
        connection.cancel_scope.cancel()
    assert not stream.reset_seen


async def test_a_cancelled_call_loses_no_push() -> None:
    made, tasks = router(job=(uuid4(), {ALICE}))
    inbox = Inbox()
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as takers:
                takers.start_soon(made.take, tasks["job"], inbox.deliver, 10)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        nursery.start_soon(made.handle, ALICE, Pushed(b"data"))
        assert await made.take(tasks["job"], inbox.deliver, 1)
    assert inbox.pushes == [(ALICE, b"data")]


@pytest.mark.parametrize("order", ["cancel first", "push first"])
async def test_a_push_matched_with_a_cancelled_call_goes_to_the_next_call(order: str) -> None:
    made, tasks = router(job=(uuid4(), {ALICE}))
    inbox = Inbox()

    async def never(_peer: str, _stream: PushStream) -> None:
        await trio.sleep_forever()

    waiting = pushes._Push(ALICE, Pushed(b"data"), [made._receivers[tasks["job"]]], trio.CancelScope())
    async with trio.open_nursery() as takers:
        takers.start_soon(made.take, tasks["job"], never, 10)
        await trio.testing.wait_all_tasks_blocked()
        if order == "cancel first":  # the taker is told, but has not run yet
            takers.cancel_scope.cancel()
        made._pushes.append(waiting)
        made._match()
        takers.cancel_scope.cancel()
    if order == "cancel first":
        assert await made.take(tasks["job"], inbox.deliver, 1)
        assert inbox.pushes == [(ALICE, b"data")]
    assert waiting.done.is_set()


async def test_a_sender_keeps_waiting_after_its_call_was_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, tasks = router(job=(uuid4(), {ALICE}))
    inbox, stream, match = Inbox(), Pushed(b"data"), made._match
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as takers:

            def match_one_that_is_cancelled() -> None:
                takers.cancel_scope.cancel()
                match()

            takers.start_soon(made.take, tasks["job"], inbox.deliver, 10)
            await trio.testing.wait_all_tasks_blocked()
            monkeypatch.setattr(made, "_match", match_one_that_is_cancelled)
            nursery.start_soon(made.handle, ALICE, stream)
        assert await made.take(tasks["job"], inbox.deliver, 1)
    assert inbox.pushes == [(ALICE, b"data")]
    assert not stream.reset_seen


@given(st.binary(max_size=64), st.integers(1, 16))
def test_the_bytes_read_to_find_the_label_are_returned_to_the_stream(data: bytes, piece: int) -> None:
    async def check() -> None:
        stream = Pushed(*(data[i : i + piece] for i in range(0, len(data), piece)))
        await pushes._read_label(stream)
        inbox = Inbox()
        await inbox.deliver(ALICE, stream)
        assert inbox.pushes == [(ALICE, data)]

    trio.run(check)


headers = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["__metadata__", "job_id", "x"]), inner),
)


@given(headers)
def test_any_header_has_a_label_or_none(header: object) -> None:
    label = pushes._label(json.dumps(header).encode())
    assert label is None or isinstance(label, str)
