"""How many tokens the API server has to review, and that wrong tokens delay no bridge with a valid one."""

from typing import Any

import pytest
import trio
import trio.testing

from hypha_worker.connector.http_server import HttpError
from hypha_worker.runtimes.kubernetes import tokens
from hypha_worker.runtimes.kubernetes.tokens import Pod, TokenReviewer

pytestmark = pytest.mark.anyio

USER, AUDIENCE = "system:serviceaccount:ns:w-job", "hypha-connector"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Waits take no time."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


PODS = {"a.valid.token": "pod", "another.valid.token": "another-pod"}


class Api:
    """An API server that knows the tokens of two pods and takes a while for a review."""

    def __init__(self, review_s: float = 0.1) -> None:
        self.review_s = review_s
        self.reviewed: list[str] = []
        self.under_way = self.most_under_way = 0

    async def create(self, _path: str, review: dict[str, Any], **_: Any) -> dict[str, Any]:
        token = review["spec"]["token"]
        self.reviewed.append(token)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await trio.sleep(self.review_s)
        self.under_way -= 1
        if (pod := PODS.get(token)) is None:
            return {"status": {"authenticated": False}}
        extra = {tokens._POD_NAME: [pod], tokens._POD_UID: ["uid"]}
        user = {"username": USER, "extra": extra}
        return {"status": {"authenticated": True, "audiences": [AUDIENCE], "user": user}}


def reviewer(api: Api) -> TokenReviewer:
    return TokenReviewer(api, USER, AUDIENCE)  # type: ignore[arg-type]


async def attempt(made: TokenReviewer, token: str, source: str) -> Pod | int | None:
    """The pod of a token, or the status of the refusal."""
    try:
        return await made.pod(token, source)
    except HttpError as error:
        return error.status


async def flood(made: TokenReviewer, count: int, sources: int) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(attempt, made, f"a.bogus.{number}", f"10.0.0.{number % sources}")


async def test_one_source_has_few_unknown_tokens_reviewed() -> None:
    api = Api()
    made = reviewer(api)
    for _ in range(10):
        await flood(made, 400, sources=1)
        await trio.sleep(1)
    assert len(api.reviewed) <= tokens._MAX_UNKNOWN_OF_SOURCE_AT_ONCE + 12


async def test_all_sources_together_have_a_limited_number_of_unknown_tokens_reviewed() -> None:
    api = Api()
    made = reviewer(api)
    for _ in range(10):
        await flood(made, 400, sources=200)
        await trio.sleep(1)
    assert len(api.reviewed) <= tokens._MAX_UNKNOWN_AT_ONCE + 20 * 16
    assert api.most_under_way <= tokens._MAX_REVIEWS


async def test_a_valid_token_stays_valid_without_waiting_while_wrong_ones_pour_in() -> None:
    api = Api()
    made = reviewer(api)
    assert await made.pod("a.valid.token", "10.0.1.1") == Pod("pod", "uid")
    for _ in range(8):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, made, 600, 200)
            began = trio.current_time()
            assert await made.pod("a.valid.token", "10.0.1.1") == Pod("pod", "uid")
            assert trio.current_time() - began < 2 * api.review_s
        await trio.sleep(tokens._VALID_S / 4)
    assert api.reviewed.count("a.valid.token") == 2


async def test_a_new_valid_token_is_accepted_while_another_source_sends_wrong_ones() -> None:
    api = Api()
    made = reviewer(api)
    await flood(made, 400, sources=1)
    assert await made.pod("another.valid.token", "10.0.1.2") == Pod("another-pod", "uid")


async def test_many_calls_with_one_token_cost_one_review() -> None:
    api = Api()
    made = reviewer(api)
    async with trio.open_nursery() as nursery:
        for token in ("a.valid.token", "a.bogus.token"):
            for _ in range(50):
                nursery.start_soon(attempt, made, token, "10.0.0.1")
    assert sorted(api.reviewed) == ["a.bogus.token", "a.valid.token"]


@pytest.mark.parametrize(
    "token", ["", "x", "a.b", "a.b.c.d", "a.b. c", "a.b.c\n", "é.b.c", f"a.{'b' * 5000}.c", "a..c"]
)
async def test_a_token_of_another_shape_is_refused_without_a_review(token: str) -> None:
    api = Api()
    assert await reviewer(api).pod(token, "10.0.0.1") is None
    assert api.reviewed == []


async def test_the_caches_are_bounded() -> None:
    made = reviewer(Api(review_s=0))
    for number in range(tokens._MAX_CACHED + 100):
        await attempt(made, f"a.bogus.{number}", f"source {number}")
        await trio.sleep(1)
    assert len(made._others) == tokens._MAX_CACHED


async def test_calls_do_not_wait_for_ever_for_an_api_server_that_does_not_answer() -> None:
    made = reviewer(Api(review_s=1000))
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(attempt, made, "a.valid.token", "10.0.0.1")
    assert trio.current_time() <= 2 * tokens._DEADLINE_S + 1
