"""Keeps the ledger in a file, which the node writes before it answers a scheduler."""

import logging
from pathlib import Path

import trio
from pydantic import ValidationError

from hypha_messages.validation import describe
from hypha_worker.files import replace_file
from hypha_worker.market.ledger import LedgerState

logger = logging.getLogger(__name__)


class LedgerFile:
    """A `LedgerStore` on the disk. Saves that are requested during a write share the next write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._latest = LedgerState()
        self._writing = trio.Lock()
        self._wanted = 0
        self._written = 0

    async def load(self) -> LedgerState | None:
        """Return the saved state, or None.

        An unreadable file is moved aside, because the records of the jobs also contain their leases.
        """
        await trio.lowlevel.checkpoint()
        try:
            return LedgerState.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            aside = self._path.with_suffix(".unreadable")
            self._path.replace(aside)
            problem = describe(error, "file")
            logger.warning("%s cannot be read and was moved to %s: %s", self._path, aside.name, problem)
            return None

    async def save(self, state: LedgerState) -> None:
        """Return once this state or a later one is on the disk. If the disk is full, the leases stay valid."""
        self._latest = state
        self._wanted += 1
        mine = self._wanted
        async with self._writing:
            if self._written >= mine:
                return
            covered = self._wanted
            data = self._latest.model_dump_json()
            try:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(replace_file, self._path, data)
            except OSError as error:
                logger.warning("cannot write %s: %s; after a restart the node may not know its jobs", self._path, error)
            self._written = covered
