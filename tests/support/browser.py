"""Debian's Chromium, driven through its pipe for debuggers."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

CHROMIUM: Final = shutil.which("chromium")
DEADLINE_S: Final = 60.0
_OPTIONS: Final = (
    "--headless=new",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-pipe",
)


class BrowserError(Exception):
    """The browser ended, did not answer in time, or reported an error."""


class Browser:
    """A browser."""

    def __init__(self, process: subprocess.Popen[bytes], commands: int, answers: int) -> None:
        self._process = process
        self._commands, self._answers = commands, answers
        self._unread = b""
        self._number = 0
        self._tabs: dict[str, Tab] = {}

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method of the debugging protocol."""
        self._number += 1
        call = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            call["sessionId"] = session
        os.write(self._commands, json.dumps(call).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self._record(answer)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        found: dict[str, Any] = answer["result"]
        return found

    def _record(self, event: dict[str, Any]) -> None:
        tab, parameters = self._tabs.get(event.get("sessionId", "")), event.get("params", {})
        if tab and event["method"] == "Log.entryAdded":
            tab.messages.append(f"{parameters['entry']['level']}: {parameters['entry']['text']}")
        elif tab and event["method"] == "Runtime.exceptionThrown":
            tab.messages.append(f"exception: {_description(parameters['exceptionDetails'])}")

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        while b"\0" not in self._unread:
            if not select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise BrowserError(f"no answer within {DEADLINE_S:g} s")
            if not (data := os.read(self._answers, 1 << 20)):
                raise BrowserError(f"the browser ended with status {self._process.wait()}")
            self._unread += data
        message, _, self._unread = self._unread.partition(b"\0")
        received: dict[str, Any] = json.loads(message)
        return received

    def open(self, url: str, width: int = 1280, height: int = 900, scheme: Literal["light", "dark"] = "light") -> "Tab":
        """Open a page in a new tab, in a window of this size."""
        target = self.call("Target.createTarget", url="about:blank", newWindow=True)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = self._tabs[session] = Tab(self, session, target)
        for domain in ("Page", "Runtime", "Log"):
            tab.call(f"{domain}.enable")
        tab.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        tab.call("Page.navigate", url=url)
        return tab

    def close_tabs(self) -> None:
        """Close all pages."""
        while self._tabs:
            _, tab = self._tabs.popitem()
            self.call("Target.closeTarget", targetId=tab.target)


def _description(exception: dict[str, Any]) -> str:
    return str(exception.get("exception", {}).get("description", exception["text"]))


class Tab:
    """A page of the browser. `messages` are errors in it, and what the browser wrote about it to the console."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser = browser
        self._session = session
        self.target = target
        self.messages: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the debugging protocol on this page."""
        return self._browser.call(method, self._session, **parameters)

    def run(self, script: str) -> Any:
        """Run JavaScript in the page and return its value. A promise is awaited."""
        answer = self.call(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            allowUnsafeEvalBlockedByCSP=False,
        )
        if "exceptionDetails" in answer:
            raise BrowserError(_description(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def until(self, condition: str) -> Any:
        """Run JavaScript until its value is true in the sense of JavaScript, and return that value."""
        deadline = time.monotonic() + DEADLINE_S
        while not (value := self.run(condition)):
            if time.monotonic() > deadline:
                raise BrowserError(f"not within {DEADLINE_S:g} s: {condition}")
            time.sleep(0.05)
        return value

    def picture(self, *, complete: bool) -> bytes:
        """Return a picture (PNG) of what is visible, or of the complete page."""
        data: str = self.call("Page.captureScreenshot", captureBeyondViewport=complete)["data"]
        return base64.b64decode(data)


@contextmanager
def open_browser(*more: str) -> Iterator[Browser]:
    """Start a browser with a profile of its own, and with more options."""
    assert CHROMIUM is not None, "run `apt-get install chromium`"
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command_end, commands = os.pipe()
        answers, answer_end = os.pipe()
        options = [*_OPTIONS, *more, f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        redirected = f'exec "$0" "$@" 3<&{command_end} 4>&{answer_end}'
        process = subprocess.Popen(
            ["bash", "-c", redirected, CHROMIUM, *options, "about:blank"],
            pass_fds=(command_end, answer_end),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(command_end)
        os.close(answer_end)
        try:
            yield Browser(process, commands, answers)
        finally:
            os.close(commands)  # which ends the browser
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(answers)
