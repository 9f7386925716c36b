"""`kubectl hypha logs`."""

import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final, TypeAlias

from rich.console import Console
from rich.text import Text

from hypha_contracts.backoff import Backoff
from hypha_contracts.kinds import HYPHA_JOB, POD, Manifest
from hypha_contracts.kubernetes_errors import Invalid, NotFound, Unavailable
from hypha_contracts.names import BRIDGE, EXECUTOR, JOB_LABEL
from hypha_contracts.object_status import is_ended
from hypha_contracts.text import escaped
from hypha_kubectl.access.api import Api, reading
from hypha_kubectl.commands.selection import place
from hypha_kubectl.errors import PluginError
from hypha_kubectl.views.interleave import Interleaver, Line, Moment, parse_line
from hypha_kubectl.views.jobs import matching

SOURCES: Final = (BRIDGE, EXECUTOR)
_STYLES: Final = {BRIDGE: "cyan", EXECUTOR: "magenta"}
_SILENCE_S: Final = 60.0
"""After such a silence the connection may be dead, so the log is asked for again from its last line."""
_CALL_S: Final = 30.0
_MAX_WAITING: Final = 1000
_TICK_S: Final = 0.1
_START_S: Final = 1.0
"""How often to look whether a container has started or ended."""
_NOT_STARTED: Final = ("waiting to start", "does not have a host assigned")
_RETRY: Final = Backoff(first_s=0.5, max_s=5.0)
_RETRY_S: Final = 60.0
"""How long a log that broke off is asked for again."""


Arrived: TypeAlias = "queue.Queue[tuple[str, Line | Exception | None]]"
"""Lines of a source; then None, or the error that ended its log."""


@dataclass(frozen=True)
class Options:
    """Which lines to show.

    Attributes:
        follow: whether to wait for more until the containers end.
        since_s: only lines of so many last seconds.
        tail: only so many last lines of each log.
        timestamps: whether to show the time of each line.
    """

    follow: bool = False
    since_s: int | None = None
    tail: int | None = None
    timestamps: bool = False

    @property
    def query(self) -> dict[str, str]:
        """The parameters for the API server."""
        query = {"timestamps": "true", "follow": str(self.follow).lower()}
        if self.since_s is not None:
            query["sinceSeconds"] = str(self.since_s)
        if self.tail is not None:
            query["tailLines"] = str(self.tail)
        return query


def show(api: Api, namespace: str | None, name: str, options: Options) -> None:
    """Print the logs of a job's bridge and executor, by time. ApiError, PluginError."""
    job = find_job(api.find(HYPHA_JOB, namespace), name, namespace)
    pod = _pod_of(api, job)
    if pod is None:
        _show_last_lines(job)
        return
    arrived: Arrived = queue.Queue(_MAX_WAITING)
    stopped = threading.Event()
    with ExitStack() as stack:
        for source in SOURCES:
            follower = _Follower(api, pod, source, options, stopped)
            stack.enter_context(reading(api, partial(follower.run, arrived), partial(_drain, arrived)))
        stack.callback(stopped.set)
        _print_in_order(arrived, _Printer(options))


def _print_in_order(arrived: Arrived, printer: "_Printer") -> None:
    lines = Interleaver(list(SOURCES), time.monotonic())
    while not lines.is_over:
        with suppress(queue.Empty):
            source, what = arrived.get(timeout=_TICK_S)
            if isinstance(what, Line):
                lines.add(what, time.monotonic())
            else:
                lines.end(source)
            if isinstance(what, PluginError):
                print(f"{source}: {escaped(str(what))}", file=sys.stderr)
            elif isinstance(what, Exception):
                raise what
        for line in lines.take(time.monotonic()):
            printer.show(line)


def _drain(arrived: Arrived) -> None:
    with suppress(queue.Empty):
        while True:
            arrived.get_nowait()


def find_job(jobs: list[Manifest], name: str, namespace: str | None) -> Manifest:
    """Return the job that a name or its beginning means. PluginError if that is none or several."""
    found = matching(jobs, name)
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(sorted(job["metadata"]["name"] for job in found)[:10])
        raise PluginError(f"{name} may mean {len(found)} jobs: {several}. Write more of the name.")
    raise PluginError(
        f"no HyphaJob {name} in {place(namespace)}. `kubectl hypha jobs` lists them. Use --namespace to look elsewhere."
    )


def _pod_of(api: Api, job: Manifest) -> Manifest | None:
    """Return the newest pod of a job, or None if there is none (any more)."""
    selector = f"{JOB_LABEL}={job['metadata']['name']}"
    pods = api.find(POD, job["metadata"]["namespace"], labelSelector=selector)
    return max(pods, key=lambda pod: pod["metadata"]["creationTimestamp"], default=None)


def _show_last_lines(job: Manifest) -> None:
    """Print what the status keeps of a job without a pod. PluginError if that is nothing."""
    name, status = job["metadata"]["name"], job.get("status") or {}
    if not is_ended(job):
        raise PluginError(f"{name} has no pod yet. Its state: `kubectl describe hyphajob {name}`. Try again later.")
    lines = status.get("lastLines") or []
    if not lines:
        raise PluginError(f"the pod of {name} is gone, and its status keeps no lines. Its phase is {status['phase']}.")
    print(f"The pod of {name} is gone. These are the last lines of its executor:", file=sys.stderr)
    for line in lines:
        print(escaped(str(line)))


class _Follower:
    """Reads the log of one container in a thread."""

    def __init__(self, api: Api, pod: Manifest, source: str, options: Options, stopped: threading.Event) -> None:
        self._api, self._source, self._options, self._stopped = api, source, options, stopped
        self._place = pod["metadata"]["namespace"], pod["metadata"]["name"]
        self._ended = _has_ended(pod, source)
        self._last = Moment(0, 0)

    def run(self, arrived: Arrived) -> None:
        """Put the lines into a queue until the log ends, or until stopped and interrupted."""
        try:
            for line in self._lines():
                arrived.put((self._source, line))
            arrived.put((self._source, None))
        except Exception as error:
            arrived.put((self._source, error))

    def _lines(self) -> Iterator[Line]:
        """Yield the lines. An answer also ends when the API server loses the kubelet, so the end is no proof."""
        pauses = _RETRY.pauses(_RETRY_S)
        while not self._stopped.is_set():
            try:
                for line in self._once():
                    pauses = _RETRY.pauses(_RETRY_S)
                    yield line
                if self._ended or not self._options.follow:
                    return
                self._stopped.wait(_START_S)
                self._ended = _has_ended(self._api.get(POD, *self._place), self._source)
            except NotFound:  # the pod was removed
                return
            except Invalid as error:
                self._wait_for_start(error)
            except Unavailable as error:
                self._wait_after(error, pauses)

    def _once(self) -> Iterator[Line]:
        query = {**self._options.query, "container": self._source}
        resumed = self._last
        if resumed.seconds:
            query = {key: value for key, value in query.items() if key not in ("sinceSeconds", "tailLines")}
            query["sinceTime"] = datetime.fromtimestamp(resumed.seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        silence_s = _SILENCE_S if self._options.follow else _CALL_S
        for raw in self._api.lines(POD.path(*self._place, "log"), query, silence_s=silence_s):
            line = parse_line(self._source, raw, self._last)
            if resumed.seconds and line.moment <= resumed:
                continue
            self._last = line.moment
            yield line

    def _wait_for_start(self, error: Invalid) -> None:
        if not any(words in error.message for words in _NOT_STARTED):
            raise error
        if not self._options.follow:
            raise PluginError(f"{error.message}. Use -f to wait for it.") from error
        self._stopped.wait(_START_S)

    def _wait_after(self, error: Unavailable, pauses: Iterator[float]) -> None:
        if not self._options.follow:
            raise error
        if error.reason != "ReadTimeout":
            pause_s = next(pauses, None)
            if pause_s is None:
                raise error
            self._stopped.wait(pause_s)


def _has_ended(pod: Manifest, container: str) -> bool:
    """Whether a container of a pod has ended for good."""
    status = pod.get("status") or {}
    states = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    ended = any(state["name"] == container and "terminated" in (state.get("state") or {}) for state in states)
    return ended or status.get("phase") in ("Succeeded", "Failed")


class _Printer:
    """Prints lines with their source."""

    def __init__(self, options: Options) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._timestamps = options.timestamps
        self._width = max(map(len, SOURCES))

    def show(self, line: Line) -> None:
        """Print a line."""
        time_ = datetime.fromtimestamp(line.moment.seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        prefix = f"{time_}.{line.moment.nanoseconds // 1_000_000:03}Z " if self._timestamps else ""
        source = (f"{line.source:<{self._width}}", _STYLES[line.source])
        self._console.print(Text.assemble(prefix, source, f" {line.text}"), markup=False)
