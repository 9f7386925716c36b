"""The status page in a real browser. Without Debian's chromium these tests are skipped."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trio

from benchmarks.busy_node import BusyNode, open_networks, scheduler_ids
from hypha_messages.progress import Metrics, Progress
from hypha_worker.connector.http_server import serve_plain
from hypha_worker.status.server import page_handler
from support.browser import CHROMIUM, Browser, Tab, open_browser

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
]

REBOUND = "rebound.example"
"""A name of a foreign site that resolves to this machine."""
SCHEDULERS = scheduler_ids(3)
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\">",
    "</script><script>document.title='owned'</script>",
    "\u202egnp.exe\u2066",
    "{{constructor.constructor('document.title=`owned`')()}}",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser(f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1") as opened:
        yield opened


@pytest.fixture(autouse=True)
def closed_tabs(browser: Browser) -> Iterator[None]:
    """Close the pages of a test."""
    yield
    browser.close_tabs()


@dataclass
class Shown:
    """A node whose page is served, and the times at which its state was asked for."""

    node: BusyNode
    port: int
    asked: list[float]
    stop: trio.CancelScope

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


@asynccontextmanager
async def shown() -> AsyncIterator[Shown]:
    """Serve the page of a node with a job and a lease."""
    async with open_networks() as (network, _), trio.open_nursery() as nursery:
        node, asked = BusyNode(network, SCHEDULERS, 8), list[float]()
        node.job(0, seconds=1000)
        node.lease(1)

        def state() -> bytes:
            asked.append(trio.current_time())
            return node.board.json()

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        stop = trio.CancelScope()

        async def serve() -> None:
            with stop:
                await serve_plain([listener], page_handler([], state))

        nursery.start_soon(serve)
        yield Shown(node, port, asked, stop)
        nursery.cancel_scope.cancel()


async def in_thread(function: Any, *arguments: Any, **named: Any) -> Any:
    return await trio.to_thread.run_sync(partial(function, *arguments, **named))


async def opened(browser: Browser, url: str, **window: Any) -> Tab:
    """Open the page and wait until it shows jobs."""
    tab: Tab = await in_thread(browser.open, url, **window)
    await in_thread(tab.until, "document.querySelectorAll('.job').length > 0")
    return tab


FACT = (
    "[...document.querySelectorAll('.job div')].find(one => one.firstChild.textContent === '{}').lastChild.textContent"
)


async def test_the_page_updates_itself_and_draws_the_loss(browser: Browser) -> None:
    async with shown() as page:
        tab = await opened(browser, page.url)
        assert await in_thread(tab.run, FACT.format("round")) == "25"
        points = "document.querySelector('.job polyline').getAttribute('points').split(' ').length"
        assert await in_thread(tab.run, points) == 25
        label = await in_thread(tab.run, "document.querySelector('.job svg').getAttribute('aria-label')")
        assert label.startswith("Loss from 3.")
        job = page.node.history.newest_first[0]
        page.node.history.on_report(job.task_id, Progress(metrics=Metrics(round=26, metrics={"loss": 0.123})))
        await in_thread(tab.until, f"{FACT.format('round')} === '26' && {FACT.format('loss')} === '0.123'")
        assert await in_thread(tab.run, points) == 26
        assert tab.messages == []


async def test_leases_count_down_between_two_answers(browser: Browser) -> None:
    left = "parseInt([...document.querySelectorAll('#leases td[data-label=\"Ends in\"]')].at(-1).textContent)"
    async with shown() as page:
        tab = await opened(browser, page.url)
        first = await in_thread(tab.run, left)
        asked = len(page.asked)
        await in_thread(tab.until, f"{left} < {first}")
        assert len(page.asked) <= asked + 1
        assert 30 < first <= 45


async def test_a_new_job_and_a_new_request_appear_and_an_ended_lease_goes(browser: Browser) -> None:
    rows = "document.querySelectorAll('#{} tbody tr').length"
    async with shown() as page:
        tab = await opened(browser, page.url)
        assert await in_thread(tab.run, rows.format("leases")) == 2
        page.node.job(2, seconds=80)
        page.node.ask(SCHEDULERS[0], 1)
        await in_thread(tab.until, "document.querySelectorAll('.job').length === 2")
        await in_thread(tab.until, f"{rows.format('leases')} === 3")
        assert "the bid 1 is below the floor" in await in_thread(tab.run, "at('requests').textContent")
        page.node.past.offset_s = 3600
        page.node.ledger.expire()
        page.node.past.offset_s = 0
        page.node.past.offset_s = 3600  # the state of an hour later
        await in_thread(tab.until, "at('leases-count').textContent === '2'")


@pytest.mark.parametrize("name", HOSTILE)
async def test_names_that_schedulers_choose_are_text_and_never_html(browser: Browser, name: str) -> None:
    async with shown() as page:
        page.node.ask(SCHEDULERS[0], 150, name)
        tab = await opened(browser, page.url)
        await in_thread(tab.until, "at('requests').textContent.includes('is not supported')")
        text = await in_thread(tab.run, "at('requests').textContent")
        shown_name = name.encode("ascii", "backslashreplace").decode()
        assert f"executor train/{shown_name} is not supported" in text
        assert await in_thread(tab.run, "document.querySelectorAll('img, td *:not(.pill)').length") == 0
        assert await in_thread(tab.run, "document.scripts.length") == 1
        assert "owned" not in await in_thread(tab.run, "document.title")
        assert tab.messages == []


async def test_the_policy_stops_html_even_if_the_script_had_a_fault(browser: Browser) -> None:
    async with shown() as page:
        tab = await opened(browser, page.url)
        attempts = (
            "document.body.innerHTML = '<b>x</b>'",
            "document.body.append(Object.assign(document.createElement('script'), {text: 'window.owned = 1'}))",
            "eval('window.owned = 1')",
            "document.body.setAttribute('onclick', 'window.owned = 1')",
        )
        script = "(() => {{ try {{ {} }} catch {{ return true }} }})()"
        refused = [await in_thread(tab.run, script.format(attempt)) for attempt in attempts]
        assert refused == [True] * 4
        assert await in_thread(tab.run, "window.owned === undefined")
        sent = await in_thread(tab.run, "fetch('http://127.0.0.1:9/').then(() => 'sent', error => error.message)")
        assert sent == "Failed to fetch"
        assert any("Content Security Policy" in message for message in tab.messages)


ATTACKS = {
    "fetch": "fetch(URL_).then(answer => answer.text())",
    "fetch without credentials": "fetch(URL_, {credentials: 'omit'}).then(answer => answer.text())",
    "fetch no-cors": "fetch(URL_, {mode: 'no-cors'}).then(answer => answer.text())",
    "XMLHttpRequest": "new Promise((done, fail) => { const call = new XMLHttpRequest(); call.open('GET', URL_); "
    "call.onload = () => done(call.responseText); call.onerror = fail; call.send(); })",
    "script": "new Promise((done, fail) => { const tag = document.createElement('script'); tag.src = URL_; "
    "tag.onload = () => done('loaded'); tag.onerror = fail; document.head.append(tag); })",
    "style": "new Promise((done, fail) => { const tag = document.createElement('link'); tag.rel = 'stylesheet'; "
    "tag.href = URL_; tag.onload = () => done('loaded'); tag.onerror = fail; document.head.append(tag); })",
    "image": "new Promise((done, fail) => { const tag = new Image(); tag.onload = () => done('loaded'); "
    "tag.onerror = fail; tag.src = URL_; })",
    "iframe": "new Promise(done => { const tag = document.createElement('iframe'); tag.src = URL_; "
    "tag.onload = () => { try { done(tag.contentWindow.document.body.textContent) } catch { done('') } }; "
    "document.body.append(tag); })",
    "events": "new Promise((done, fail) => { const events = new EventSource(URL_); "
    "events.onopen = () => done('opened'); events.onerror = () => { events.close(); fail(); }; })",
    "window": "new Promise(done => { const opened = window.open(URL_); setTimeout(() => { "
    "try { done(opened ? opened.document.body.textContent : '') } catch { done('') } }, 300); })",
    "post": "fetch(URL_, {method: 'POST', mode: 'no-cors', body: 'x'}).then(answer => answer.text())",
}
"""What a page of a foreign site may try. Each ends with what it has read, or fails."""


@pytest.fixture
def foreign() -> Iterator[int]:
    """A foreign site on this machine; returns its port."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>foreign</title><body>")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield site.server_port
        site.shutdown()
        thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", REBOUND])
@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_page_of_a_foreign_site_in_the_same_browser_reads_nothing(
    browser: Browser, foreign: int, host: str, attack: str
) -> None:
    async with shown() as page:
        tab = await in_thread(browser.open, f"http://{host}:{foreign}/")
        await in_thread(tab.until, "document.title === 'foreign'")
        url = f"{page.url}status.json"
        attempt = f"try {{ return await {ATTACKS[attack]} }} catch {{ return '' }}"
        assert await in_thread(tab.run, f"(async () => {{ const URL_ = {url!r}; {attempt} }})()") == ""
        assert page.asked == []


async def test_a_foreign_name_that_resolves_to_the_node_is_answered_with_a_refusal(browser: Browser) -> None:
    async with shown() as page:
        for path in ("", "status.json"):
            tab = await in_thread(browser.open, f"http://{REBOUND}:{page.port}/{path}")
            await in_thread(tab.until, "document.body && document.body.textContent.includes('forbidden')")
        assert page.asked == []


async def test_the_page_says_when_the_node_no_longer_answers(browser: Browser) -> None:
    async with shown() as page:
        tab = await opened(browser, page.url)
        assert await in_thread(tab.run, "at('silence').hidden")
        page.stop.cancel()
        await in_thread(tab.until, "!at('silence').hidden")
        assert "does not answer" in await in_thread(tab.run, "at('silence').textContent")
        assert await in_thread(tab.run, "document.querySelectorAll('.job').length") == 1


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
async def test_nothing_is_wider_than_the_window(browser: Browser, width: int) -> None:
    async with shown() as page:
        page.node.ask(SCHEDULERS[0], 150, "x" * 60)
        tab = await opened(browser, page.url, width=width)
        await in_thread(tab.until, "at('requests').textContent.includes('xxx')")
        assert await in_thread(tab.run, "document.documentElement.scrollWidth") <= width


CONTRASTS = """
(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
  };
  return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && [...e.childNodes].some(
    n => n.nodeType === 3 && n.textContent.trim())).map(e => {
      const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
      return [(a + .05) / (b + .05), e.className + ' ' + e.textContent.slice(0, 30)];
    }).filter(([ratio]) => ratio < 4.5);
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_stands_out_from_its_background(browser: Browser, scheme: str) -> None:
    async with shown() as page:
        page.node.job(2, seconds=200, ended_s=10, failure="it failed")
        page.node.ask(SCHEDULERS[0], 1)
        page.node.ask(SCHEDULERS[1], 150)
        tab = await opened(browser, page.url, scheme=scheme)
        await in_thread(tab.until, "document.querySelectorAll('.job').length === 2")
        assert await in_thread(tab.run, CONTRASTS) == []


async def test_tables_are_tables_to_a_screen_reader_even_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    async with shown() as page:
        tab = await opened(browser, page.url, width=390)
        tree = (await in_thread(tab.call, "Accessibility.getFullAXTree"))["nodes"]
        names = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if "role" in node}
        assert ("table", "Leases") in names
        assert ("columnheader", "Ends in") in names
        assert {"row", "cell", "main", "heading"} <= {role for role, _ in names}
        assert ("heading", "Jobs") in names
