"""List all objects regularly, to find changes that the watches missed, or that no watch shows."""

import asyncio
import logging
from typing import Final

from hypha_contracts.kinds import Kind
from hypha_contracts.kubernetes_errors import ApiError
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.kinds import KNOWN, LISTED, SELECTORS
from hypha_operator.machinery.store import Store
from hypha_operator.machinery.watches import Watches

PERIOD_S: Final = 120.0
LATE_S: Final = 60.0
"""How long the watch may take to show an object after it was listed."""

_log = logging.getLogger(__name__)


class Audit:
    """Lists the versions of all objects regularly, and compares them with the versions that the watches have shown.

    Only the audit detects a watch that ended silently, and a deletion that happened while a watch was interrupted.
    """

    def __init__(
        self, store: Store, watches: Watches, cluster: Cluster, clock: Clock, namespaces: tuple[str | None, ...]
    ) -> None:
        self._store, self._watches, self._cluster, self._clock = store, watches, cluster, clock
        self._namespaces = namespaces
        self._late: dict[tuple[Kind, str | None, str], tuple[str, int, float]] = {}

    def lag_s(self) -> float:
        """Return the age in seconds of the oldest listed version that the watches have not shown."""
        oldest_s = self._clock.monotonic()
        for place, (uid, version, since_s) in list(self._late.items()):
            if (self._store.version(*place) or 0) >= version or self._store.is_deleted(uid, version):
                del self._late[place]
            else:
                oldest_s = min(oldest_s, since_s)
        return self._clock.monotonic() - oldest_s

    async def run(self) -> None:
        """Check all kinds regularly until cancelled. A failed list is only logged."""
        while True:
            await self._clock.sleep(PERIOD_S)
            for kind in KNOWN:
                for namespace in self._namespaces:
                    try:
                        await self.check(kind, namespace)
                    except ApiError as error:
                        _log.info("cannot list %s to look for missed changes: %s", kind.plural, error)

    async def check(self, kind: Kind, namespace: str | None) -> None:
        """Compare the store with a list of one kind.

        Objects that the list lacks are deleted. The lag counts versions that are newer than the store's. The store gets
        the listed objects of kinds without a watch.
        """
        before = list(self._store.places(kind))
        listed: set[str] = set()
        late: dict[tuple[Kind, str | None, str], tuple[str, int]] = {}
        async for page in self._cluster.pages(kind, namespace, SELECTORS[kind], metadata_only=kind not in LISTED):
            for item in page:
                metadata = item["metadata"]
                listed.add(metadata["uid"])
                if kind in LISTED:
                    self._watches.record(kind, item)
                place = (kind, metadata.get("namespace"), metadata["name"])
                if (self._store.version(*place) or 0) < int(metadata["resourceVersion"]):
                    late[place] = metadata["uid"], int(metadata["resourceVersion"])
            await asyncio.sleep(0)
        for place, (uid, version) in late.items():
            self._late.setdefault(place, (uid, version, self._clock.monotonic()))
        for its_namespace, name, uid in before:
            if namespace in (None, its_namespace) and uid not in listed:
                self._remove(kind, its_namespace, name, uid)

    def _remove(self, kind: Kind, namespace: str | None, name: str, uid: str) -> None:
        manifest = self._store.get(kind, namespace, name)
        if manifest is not None and manifest["metadata"]["uid"] == uid:
            _log.info("%s %s/%s is gone; no watch has shown its deletion", kind.name, namespace, name)
            self._watches.record_deletion(kind, manifest)
