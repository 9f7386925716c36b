"""Keeps what a node must not forget about its leases in a file, written whole before anyone is answered."""

import logging
from pathlib import Path

import trio
from pydantic import ValidationError

from hypha_messages.validation import describe
from hypha_worker.market.ledger import Ledger, LedgerState
from hypha_worker.runtimes.process.processes import write_whole

logger = logging.getLogger(__name__)


class LedgerFile:
    """The file of one ledger; whoever saves while a write is under way shares the next one."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self.path = path
        self.ledger = ledger
        self._writing = trio.Lock()
        self._wanted = 0
        self._written = 0

    async def restore(self) -> None:
        """Restore the ledger as it was saved, before anything else happens."""
        await trio.lowlevel.checkpoint()
        self.load()

    def load(self) -> None:
        """Restore the ledger; a file that cannot be used is put aside, since jobs tell what they know themselves."""
        try:
            self.ledger.restore(LedgerState.model_validate_json(self.path.read_bytes()))
        except FileNotFoundError:
            return
        except ValidationError as error:
            aside = self.path.with_suffix(".unreadable")
            self.path.replace(aside)
            problem = describe(error, "file")
            logger.warning("%s cannot be read and was moved to %s: %s", self.path, aside.name, problem)

    async def save(self) -> None:
        """Return once the ledger as it is now is on the disk; a full disk is logged, the lease stands all the same."""
        self._wanted += 1
        mine = self._wanted
        async with self._writing:
            if self._written >= mine:
                return
            covered = self._wanted
            data = self.ledger.state().model_dump_json()
            try:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(write_whole, self.path, data)
            except OSError as error:
                logger.warning("cannot write %s: %s; after a restart the node may not know its jobs", self.path, error)
            self._written = covered
