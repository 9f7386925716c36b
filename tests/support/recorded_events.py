"""The events of a node, collected for tests."""

from collections import defaultdict
from typing import Any

import trio

from hypha_devnet.events import Events


class Recorded(Events):
    """Events that collect in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[dict[str, Any]] = []
        self.happened: defaultdict[str, trio.Event] = defaultdict(trio.Event)

    def emit(self, event: str, **values: Any) -> None:
        super().emit(event, **values)
        self.all.append({"event": event, **values})
        self.happened[event].set()

    def of(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self.all if entry["event"] == event]
