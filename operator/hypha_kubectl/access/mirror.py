"""Follow the objects of a kind by a watch."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from hypha_contracts.backoff import Backoff
from hypha_contracts.kinds import Kind, Manifest
from hypha_contracts.kubernetes_errors import Gone, Unavailable
from hypha_kubectl.access.api import Api, reading

_BACKOFF: Final = Backoff(first_s=0.5, max_s=15.0)
_MAX_CHANGES: Final = 1000

Place = tuple[str, str]
"""Namespace and name of an object."""


class Mirror:
    """The current objects of a kind. `following` makes one and keeps it up to date.

    Attributes:
        objects: the objects by place, as of the changes that `take` has returned.
        problem: why the objects may be out of date, or None.
    """

    def __init__(self, api: Api, kind: Kind, namespace: str | None, selectors: dict[str, str]) -> None:
        self._api, self._kind, self._namespace, self._selectors = api, kind, namespace, selectors
        self._changes: queue.Queue[tuple[str, Any]] = queue.Queue(_MAX_CHANGES)
        self._stopped = threading.Event()
        found, self._version = api.snapshot(kind, namespace, **selectors)
        self.objects: dict[Place, Manifest] = {_place(object_): object_ for object_ in found}
        self.problem: str | None = None

    def take(self, timeout_s: float) -> list[Manifest]:
        """Wait for changes, and return the objects that changed, also those that were deleted. ApiError."""
        changed: list[Manifest] = []
        try:
            self._apply(*self._changes.get(timeout=timeout_s), changed)
            while True:
                self._apply(*self._changes.get_nowait(), changed)
        except queue.Empty:
            return changed

    def _apply(self, what: str, value: Any, changed: list[Manifest]) -> None:
        if what == "FAILED":
            raise value
        if what == "PROBLEM":
            self.problem = value
        elif what == "LISTED":
            self.problem, before = None, self.objects
            self.objects = {_place(object_): object_ for object_ in value}
            changed += [object_ for place, object_ in self.objects.items() if before.get(place) != object_]
            changed += [object_ for place, object_ in before.items() if place not in self.objects]
        else:
            self.problem = None
            if what == "DELETED":
                self.objects.pop(_place(value), None)
            else:
                self.objects[_place(value)] = value
            changed.append(value)

    def run(self) -> None:
        """Watch until stopped. `take` raises the error that ends this."""
        try:
            self._run()
        except Exception as error:
            self._changes.put(("FAILED", error))

    def _run(self) -> None:
        pauses = _BACKOFF.pauses()
        while not self._stopped.is_set():
            try:
                self._follow()
                pauses = _BACKOFF.pauses()
            except Gone:
                self._list_again()
            except Unavailable as error:
                self._changes.put(("PROBLEM", str(error)))
                if not self._stopped.wait(next(pauses)):
                    self._list_again()

    def _follow(self) -> None:
        for type_, object_ in self._api.watch(self._kind, self._namespace, self._version, **self._selectors):
            self._version = object_["metadata"]["resourceVersion"]
            if type_ != "BOOKMARK":
                self._changes.put((type_, object_))

    def _list_again(self) -> None:
        try:
            found, self._version = self._api.snapshot(self._kind, self._namespace, **self._selectors)
        except Unavailable as error:
            self._changes.put(("PROBLEM", str(error)))
        else:
            self._changes.put(("LISTED", found))

    def stop(self) -> None:
        """End the watch once its stream is broken off."""
        self._stopped.set()

    def drain(self) -> None:
        """Drop the changes that nobody takes any more."""
        with suppress(queue.Empty):
            while True:
                self._changes.get_nowait()


@contextmanager
def following(api: Api, kind: Kind, namespace: str | None, **selectors: str) -> Iterator[Mirror]:
    """List the objects of a kind, and follow their changes while the block runs. ApiError."""
    mirror = Mirror(api, kind, namespace, selectors)
    with reading(api, mirror.run, mirror.drain):
        try:
            yield mirror
        finally:
            mirror.stop()


def _place(object_: Manifest) -> Place:
    return object_["metadata"].get("namespace", ""), object_["metadata"]["name"]
