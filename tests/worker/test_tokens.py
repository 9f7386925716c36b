"""Which tokens belong to a pod, and how often the node reads the API server's keys."""

import logging
from collections.abc import Callable
from typing import Any

import jwt
import pytest
import trio
import trio.testing

from hypha_contracts.kubernetes_errors import Forbidden, Unavailable
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_worker.connector.http_server import HttpError
from hypha_worker.runtimes.kubernetes import tokens
from hypha_worker.runtimes.kubernetes.tokens import Pod, TokenVerifier
from support.tokens import AUDIENCE, USER, published, token

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Waits take no time."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


@pytest.fixture(autouse=True)
def nothing_logged_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests before this one have used up no lines of the log."""
    monkeypatch.setattr(tokens, "_rate_limited_log", RateLimitedLogger(logging.getLogger("tokens")))


class Api:
    """An API server that publishes keys, unless it fails."""

    def __init__(self, *names: str) -> None:
        self.keys = published(*names)
        self.failure: Exception | None = None
        self.answer_s = 0.1
        self.readings = 0

    async def get(self, path: str) -> dict[str, Any]:
        assert path == "/openid/v1/jwks"
        self.readings += 1
        await trio.sleep(self.answer_s)
        if self.failure:
            raise self.failure
        return self.keys


def verifier(api: Api) -> TokenVerifier:
    return TokenVerifier(api, USER, AUDIENCE)  # type: ignore[arg-type]


async def test_the_token_of_a_pod_names_the_pod() -> None:
    assert await verifier(Api("old")).pod(token()) == Pod("pod", "uid")


WRONG: dict[str, Callable[[], str]] = {
    "expired": lambda: token(valid_s=-120),
    "not valid yet": lambda: token(nbf=4_000_000_000),
    "without an end": lambda: token(exp=None),
    "for another audience": lambda: token(aud=["https://kubernetes.default.svc"]),
    "for no audience": lambda: token(aud=None),
    "of another account": lambda: token(sub="system:serviceaccount:ns:w-controller"),
    "of the account of that name in another namespace": lambda: token(sub="system:serviceaccount:other:w-job"),
    "bound to no pod": lambda: token(**{"kubernetes.io": {"namespace": "ns"}}),
    "without the claims of Kubernetes": lambda: token(**{"kubernetes.io": None}),
    "signed by another key of the same id": lambda: token("other", kid="old"),
    "signed by an unknown key": lambda: token("other"),
    "not signed": lambda: jwt.encode({"sub": USER}, None, "none", headers={"kid": "old"}),
    "signed with the public key as a secret": lambda: jwt.encode({"sub": USER}, "x" * 64, "HS256", {"kid": "old"}),
    "changed afterwards": lambda: ".".join([*token().split(".")[:2], token("other").split(".")[2]]),
}


@pytest.mark.parametrize("made", WRONG.values(), ids=WRONG.keys())
async def test_another_token_belongs_to_nobody(made: Callable[[], str]) -> None:
    assert await verifier(Api("old")).pod(made()) is None


@pytest.mark.parametrize(
    "text", ["", "x", "a.b", "a.b.c.d", "a.b. c", "a.b.c\n", "é.b.c", f"a.{'b' * 5000}.c", "a..c", f"{'a' * 300}.b.c"]
)
async def test_a_token_of_another_shape_is_refused_without_reading_keys(text: str) -> None:
    api = Api("old")
    assert await verifier(api).pod(text) is None
    assert api.readings == 0


async def test_clocks_may_differ_by_a_minute() -> None:
    assert await verifier(Api("old")).pod(token(valid_s=-30))


async def test_many_calls_with_valid_tokens_cost_one_reading_in_ten_minutes() -> None:
    api = Api("old")
    made = verifier(api)
    for _ in range(60):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(made.pod, token())
        await trio.sleep(30)
    assert api.readings == 3


async def test_tokens_of_unknown_keys_cost_one_reading_in_ten_seconds() -> None:
    api = Api("old")
    made = verifier(api)
    for _ in range(100):
        assert await made.pod(token("other", kid=f"unknown-{trio.current_time()}")) is None
        await trio.sleep(1)
    assert api.readings <= 11


async def test_a_token_of_a_new_key_is_valid_once_the_keys_may_be_read_again() -> None:
    api = Api("old")
    made = verifier(api)
    assert await made.pod(token())
    api.keys = published("old", "new")
    await trio.sleep(tokens._PAUSE_S)
    assert await made.pod(token("new")) == Pod("pod", "uid")


async def test_a_token_of_a_key_that_was_withdrawn_is_refused_after_ten_minutes() -> None:
    api = Api("old")
    made = verifier(api)
    assert await made.pod(token())
    api.keys = published("new")
    await trio.sleep(tokens._FRESH_S)
    assert await made.pod(token()) is None


async def test_known_keys_serve_while_the_api_server_is_away_and_unknown_ones_may_try_again() -> None:
    api = Api("old")
    made = verifier(api)
    assert await made.pod(token())
    api.failure = Unavailable("GET", 0, "", "no answer")
    await trio.sleep(tokens._FRESH_S)
    assert await made.pod(token()) == Pod("pod", "uid")
    with pytest.raises(HttpError) as refused:
        await made.pod(token("new"))
    assert refused.value.status == 503


async def test_without_keys_the_log_names_the_binding_that_lets_accounts_read_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = Api("old")
    api.failure = Forbidden("GET /openid/v1/jwks", 403, "Forbidden", "no")
    with pytest.raises(HttpError) as refused:
        await verifier(api).pod(token())
    assert refused.value.status == 503
    assert "ClusterRoleBinding system:service-account-issuer-discovery" in caplog.text


async def test_calls_do_not_wait_for_ever_for_an_api_server_that_does_not_answer() -> None:
    api = Api("old")
    api.answer_s = 1000
    with pytest.raises(HttpError):
        await verifier(api).pod(token())
    assert trio.current_time() <= tokens._DEADLINE_S


@pytest.mark.parametrize("answer", [{}, {"keys": []}, {"keys": [{"kty": "unknown"}]}, {"keys": "x"}, {"keys": [1]}])
async def test_an_answer_without_usable_keys_counts_as_none(answer: dict[str, Any]) -> None:
    api = Api("old")
    api.keys = answer
    with pytest.raises(HttpError):
        await verifier(api).pod(token())


def test_keys_for_other_algorithms_are_not_used() -> None:
    both = published("old", "new")
    both["keys"][1] |= {"kty": "oct", "k": "eA", "alg": "HS256"}
    assert tokens.keys_of(both).keys() == {"old"}
