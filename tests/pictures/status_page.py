"""The pictures of docs/status-page.md, taken with chromium."""

import io
from functools import partial
from typing import Final, Literal

import trio
from PIL import Image

from benchmarks.busy_node import AGGREGATE, BusyNode, open_networks
from hypha_worker.connector.http_server import serve_plain
from hypha_worker.status.server import page_handler
from pictures import DIRECTORY
from support.browser import open_browser

MAX_BYTES: Final = 100_000
COLOURS: Final = 64
PICTURES: Final[tuple[tuple[str, int, int, Literal["light", "dark"]], ...]] = (
    ("status-wide", 1280, 1240, "light"),
    ("status-dark", 1280, 980, "dark"),
    ("status-phone", 390, 1150, "light"),
)


def live(node: BusyNode, schedulers: list[str]) -> None:
    """Let the node have a past that shows everything that the page has."""
    lost = "the executor ended: killed by SIGKILL (the kernel killed 1 of its processes for using more memory)"
    node.job(0, seconds=500, ended_s=3000, failure=lost)
    node.job(1, seconds=2400, ended_s=700)
    node.job(1, seconds=2000)
    node.job(2, seconds=1100)
    node.job(0, AGGREGATE, seconds=900)
    node.job(0, seconds=600)
    node.lease(2, seconds=130)
    node.ask(schedulers[0], 20, seconds_ago=30)
    node.ask(schedulers[1], 100, "whisper", seconds_ago=12)
    node.ask(schedulers[2], 150, seconds_ago=2)


async def draw() -> None:
    """Write the pictures."""
    async with open_networks("one", "two", "three") as (network, schedulers), trio.open_nursery() as nursery:
        node = BusyNode(network, schedulers, 8)
        live(node, schedulers)
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        nursery.start_soon(serve_plain, [listener], page_handler([], node.board.json))
        await trio.to_thread.run_sync(partial(take_pictures, url))
        nursery.cancel_scope.cancel()


def take_pictures(url: str) -> None:
    """Take the pictures of a page."""
    with open_browser("--hide-scrollbars") as browser:
        for name, width, height, scheme in PICTURES:
            tab = browser.open(url, width, height, scheme)
            tab.until("document.querySelectorAll('.job').length > 0")
            picture = Image.open(io.BytesIO(tab.picture(complete=False))).convert("RGB")
            file = DIRECTORY / f"{name}.png"
            picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(file, optimize=True)
            assert file.stat().st_size < MAX_BYTES, f"{file} is larger than {MAX_BYTES} bytes"
            print(file, file.stat().st_size, "bytes")
