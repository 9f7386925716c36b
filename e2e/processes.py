"""The devnet's processes, with their events and logs."""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

Event = dict[str, Any]
_STOP_S: Final = 10.0


class Process:
    """A program that writes events as lines of JSON to its standard output.

    Args:
        name: the name of its log.
        command: the program and its arguments.
        logs: the directory of the log.
        environment: its complete environment.
    """

    def __init__(self, name: str, command: Sequence[str], logs: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        self.events: list[Event] = []
        self._changed = threading.Condition()
        with self.log.open("ab") as log:
            self._handle = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=dict(environment),
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._handle.stdout is not None
        with self.log.open("ab", buffering=0) as log:
            for line in self._handle.stdout:
                try:
                    event = json.loads(line)
                except ValueError:
                    log.write(line)
                    continue
                with self._changed:
                    self.events.append(event)
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def of(self, name: str) -> list[Event]:
        """Return all events of a name so far."""
        return [event for event in list(self.events) if event.get("event") == name]

    def until(self, what: str, found: Callable[[], Any], timeout_s: float) -> Any:
        """Wait for a condition on the events; AssertionError if the program ends first, or after the timeout."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not (result := found()):
                left_s = deadline - time.monotonic()
                ended = self._handle.poll() is not None and not self._reader.is_alive()
                if ended or left_s <= 0:
                    how = f"ended with status {self._handle.returncode}" if ended else f"did not in {timeout_s:g} s"
                    raise AssertionError(f"{self.name} {how}: {what}. The end of its log:\n{self.last_lines()}")
                self._changed.wait(min(left_s, 1))
            return result

    def event(self, name: str, timeout_s: float = 60) -> Event:
        """Wait for the first event of a name; return it."""
        events: list[Event] = self.until(f"report {name!r}", lambda: self.of(name), timeout_s)
        return events[0]

    def ended(self, timeout_s: float) -> int:
        """Wait for its end; return its exit status."""
        try:
            status = self._handle.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} runs after {timeout_s:g} s:\n{self.last_lines()}") from None
        self._reader.join(_STOP_S)
        return status

    def last_lines(self) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def stop(self) -> None:
        """End the program if it runs."""
        if self._handle.poll() is None:
            self._handle.terminate()
            try:
                self._handle.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._handle.kill()
                self._handle.wait()
