"""Elect one replica to reconcile, by a Lease in the scope that all of them serve."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from hypha_contracts.kinds import LEASE, Manifest
from hypha_contracts.kubernetes_errors import ApiError, Conflict, NotFound
from hypha_contracts.operator_lease import CLUSTER_LEASE, LEASE_NAME, holder_of, release_of
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster

LEASE_S: Final = 13
"""Another replica may take the Lease once it has seen it unchanged for this long."""
LEADING_S: Final = 9.5
"""How long a replica leads after it sent a renewal that succeeded. All of its calls end by then."""
CALL_S: Final = 4.0
"""The deadline of a call about the Lease."""
INTERVAL_S: Final = 1.5
"""The time between renewals, and between two looks at a Lease that another replica holds."""
UNINSTALLER: Final = "uninstaller"
"""The replica that holds the Lease while the release is uninstalled."""
_RETIRED_S: Final = 120.0
"""How long the replicas of a release that is being uninstalled do not take the Lease."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Observed:
    """A Lease as this replica sees it.

    Attributes:
        version: its resource version; empty if it does not exist.
        holder: who holds it, as `<release>/<replica>`; empty if nobody does.
        duration_s: how long it is valid after each change.
        since_s: when this replica first saw this version, in monotonic seconds. The times in a Lease do not count,
            because the clocks of two machines may differ.
    """

    version: str
    holder: str
    duration_s: float
    since_s: float

    @property
    def release(self) -> str:
        """The release of the holder."""
        return release_of(self.holder)

    def is_free(self, now_s: float) -> bool:
        """Whether nobody holds it any more."""
        return not self.holder or now_s - self.since_s >= self.duration_s


def lease_place(namespaces: Sequence[str]) -> tuple[str, str]:
    """Return namespace and name of the Lease whose holder serves these namespaces; empty: the cluster."""
    return (namespaces[0], LEASE_NAME) if namespaces else CLUSTER_LEASE


def observed(lease: Manifest | None, before: Observed | None, now_s: float) -> Observed:
    """Return a Lease as seen now. If it has not changed, it keeps the time at which it was first seen."""
    if lease is None:
        return Observed("", "", 0.0, now_s)
    version = str(lease["metadata"]["resourceVersion"])
    if before is not None and before.version == version:
        return before
    duration_s = float((lease.get("spec") or {}).get("leaseDurationSeconds") or 0)
    return Observed(version, holder_of(lease), duration_s, now_s)


def lease_of(place: tuple[str, str], before: Observed, holder: str, duration_s: int, now: datetime) -> Manifest:
    """Return the Lease to write. Its version lets the API server refuse it if somebody else was faster."""
    time = now.isoformat(timespec="microseconds").replace("+00:00", "Z")
    spec: dict[str, Any] = {"holderIdentity": holder or None, "leaseDurationSeconds": duration_s, "renewTime": time}
    if holder != before.holder:
        spec["acquireTime"] = time
    metadata = {"namespace": place[0], "name": place[1]}
    if before.version:
        metadata["resourceVersion"] = before.version
    return {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": metadata, "spec": spec}


async def write_lease(cluster: Cluster, lease: Manifest) -> Manifest:
    """Create or change a Lease. Raises `Conflict` if it has changed since it was observed."""
    return await (cluster.merge(lease) if "resourceVersion" in lease["metadata"] else cluster.create(lease))


class Election:
    """Lets one of several replicas lead.

    A replica stops leading 9.5 s after its last renewal, by its own monotonic clock, and the others wait for 13 s. So
    two replicas never lead at once, even if one of them cannot reach the API server, or was stopped for a while.

    Args:
        cluster: makes one attempt for each call, with a short deadline.
        clock: the source of time.
        place: namespace and name of the Lease.
        release: the release of this replica, as `<namespace>/<name>`.
        replica: this replica's name, unique among those of the release.
    """

    def __init__(self, cluster: Cluster, clock: Clock, place: tuple[str, str], release: str, replica: str) -> None:
        self._cluster, self._clock, self._place = cluster, clock, place
        self._release, self._me = release, f"{release}/{replica}"
        self._seen: Observed | None = None
        self._until_s = self._retired_s = -math.inf
        self._error: ApiError | None = None

    def leads_until_s(self) -> float:
        """Return the monotonic time at which this replica stops leading unless it renews the Lease. May be past."""
        return self._until_s

    @property
    def leads(self) -> bool:
        """Whether this replica leads."""
        return self._clock.monotonic() < self._until_s

    def state(self) -> str:
        """Return which replica leads, for people."""
        return "leads" if self.leads else f"stands by; {(self._seen and self._seen.holder) or 'no replica'} leads"

    def problem(self) -> str | None:
        """Return why no replica of this release can lead, or None."""
        if self.leads:
            return None
        if self._error is not None:
            return f"the Lease that decides which replica leads: {self._error}"
        if self._seen and self._seen.release not in ("", self._release):
            return served_by_other(self._seen.release, self._place)
        return None

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Run `lead` whenever this replica leads, and cancel it when it does not any more, until cancelled."""
        while True:
            await self._take()
            _log.info("%s leads", self._me)
            await self._hold(lead)
            _log.warning("%s leads no longer: %s", self._me, self._error or "another replica has taken the Lease")

    async def _take(self) -> None:
        """Return once this replica holds the Lease."""
        logged: str | None = None
        while not await self._succeeds(self._try_to_take):
            problem = self.problem()
            if problem and problem != logged:
                _log.warning("%s", problem)
            logged = problem
            await self._clock.sleep(INTERVAL_S)

    async def _try_to_take(self) -> bool:
        now_s = self._clock.monotonic()
        self._seen = seen = observed(await self._cluster.get(LEASE, *self._place), self._seen, now_s)
        if seen.holder == f"{self._release}/{UNINSTALLER}":
            self._retired_s = now_s
        if now_s - self._retired_s < _RETIRED_S or not (seen.holder == self._me or seen.is_free(now_s)):
            return False
        await self._write(seen)
        return True

    async def _hold(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Run `lead` and renew the Lease, until that fails for too long. Give the Lease back if cancelled."""
        leading = asyncio.ensure_future(lead())
        try:
            while self.leads and not leading.done():
                await self._pause(leading)
                await self._succeeds(self._try_to_renew)
        except asyncio.CancelledError:
            await _end(leading)
            await self._succeeds(self._give_back)
            raise
        finally:
            self._until_s = -math.inf
            await _end(leading)
        if not leading.cancelled():
            leading.result()

    async def _pause(self, leading: asyncio.Future[None]) -> None:
        """Wait until the next renewal is due, or until `lead` has failed."""
        due = asyncio.ensure_future(self._clock.sleep(INTERVAL_S))
        try:
            await asyncio.wait({due, leading}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            due.cancel()

    async def _try_to_renew(self) -> bool:
        assert self._seen is not None  # noqa: S101 - this replica has taken it
        try:
            await self._write(self._seen)
        except (Conflict, NotFound):
            now_s = self._clock.monotonic()
            self._seen = observed(await self._cluster.get(LEASE, *self._place), self._seen, now_s)
            if self._seen.holder not in ("", self._me):
                self._until_s = -math.inf
                return False
            await self._write(self._seen)  # somebody changed it without taking it
        return True

    async def _give_back(self) -> bool:
        """Let another replica lead at once."""
        if self._seen is not None and self.leads:
            await write_lease(self._cluster, lease_of(self._place, self._seen, "", 1, self._clock.now()))
        return True

    async def _write(self, before: Observed) -> None:
        sent_s = self._clock.monotonic()
        lease = lease_of(self._place, before, self._me, LEASE_S, self._clock.now())
        self._seen = observed(await write_lease(self._cluster, lease), None, sent_s)
        self._until_s = sent_s + LEADING_S

    async def _succeeds(self, attempt: Callable[[], Awaitable[bool]]) -> bool:
        try:
            done = await attempt()
        except ApiError as error:
            if not isinstance(error, Conflict):  # another replica was faster
                self._error = error
            return False
        self._error = None
        return done


async def _end(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def served_by_other(release: str, place: tuple[str, str]) -> str:
    """Return the message that another release serves a scope, with the remedy."""
    scope = "the cluster" if place == CLUSTER_LEASE else f"namespace {place[0]}"
    return (
        f"release {release} serves {scope}. Uninstall one of the two releases. If {release} is gone already, wait, or "
        f"run: kubectl delete lease {place[1]} -n {place[0]}"
    )
