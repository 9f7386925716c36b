"""A running node of a host reads its configuration again at SIGHUP."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from support.certs import Pki
from support.networks import DEADLINE_S, gateway
from support.node_process import Stage, stage

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def running() -> AsyncIterator[Stage]:
    pki = Pki()
    with trio.fail_after(DEADLINE_S):
        async with gateway(pki) as entry, stage(pki, entry, "run", offer={"price": 100.0}, jobs={"read_ahead": 1}) as s:
            await s.node.logged("ready: ")
            try:
                yield s
            except BaseException:
                print(s.node.log)
                raise


async def reload(s: Stage, before: str, after: str, answer: str) -> None:
    text = s.node.config.read_text()
    assert before in text
    s.node.config.write_text(text.replace(before, after))
    s.node.signal(signal.SIGHUP)
    await s.node.logged(answer)


async def price(s: Stage) -> float:
    return (await s.scheduler.lease()).offer.message.price


async def test_a_new_price_applies_to_the_next_offer_and_jobs_go_on() -> None:
    async with running() as s:
        pid = s.node.pid
        await reload(s, '"price" = 100.0', '"price" = 250.0', "reloaded: offer.price")
        assert await price(s) == 250
        assert s.node.pid == pid
        assert s.node.log.count("ready: ") == 1


async def test_a_key_that_needs_a_restart_is_named_and_left_alone_while_others_apply() -> None:
    async with running() as s:
        await reload(s, '"read_ahead" = 1', '"read_ahead" = 2\n"max_duration_s" = 60', "reloaded: jobs.max_duration_s")
        assert "jobs.read_ahead changed, which needs a restart and is left alone" in s.node.log


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ('"price" = -1', "nothing was reloaded. "),
        ('"price" = 100.0\n[resources]\ncpu = 1', "not TOML"),
        ('"prise" = 7', "Did you mean price?"),
    ],
)
async def test_an_invalid_file_changes_nothing_and_the_log_says_why(after: str, words: str) -> None:
    async with running() as s:
        await reload(s, '"price" = 100.0', after, words)
        assert await price(s) == 100


async def test_a_suspended_host_makes_no_offers_until_it_is_resumed() -> None:
    async with running() as s:
        text = s.node.config.read_text()
        s.node.config.write_text(f"suspend = true\n{text}")
        s.node.signal(signal.SIGHUP)
        await s.node.logged("the worker is suspended")
        request = await s.scheduler.ask()
        await trio.sleep(1)
        assert not request.offers
        s.node.config.write_text(text)
        s.node.signal(signal.SIGHUP)
        await s.node.logged("the worker makes offers")
        assert await price(s) == 100
