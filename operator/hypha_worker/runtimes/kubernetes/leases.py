"""Keeps vacant leases, which have no job yet, and the accounts for the next pod: in `status.node` of the HyphaWorker.

The HyphaJob of a job holds its lease. A renewal costs a write only if it is the lease's first.
"""

import logging
from collections.abc import Set
from functools import partial
from time import time
from typing import Final
from uuid import UUID

import trio
from pydantic import ValidationError

from hypha_contracts.kubernetes_errors import ApiError, Refused
from hypha_contracts.names import API_VERSION, WORKERS
from hypha_contracts.node_config import KubernetesConfig
from hypha_messages.job import ExecutorDescriptor
from hypha_network.changes import Changes
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_resources.job import Amounts, ExecutorRef
from hypha_resources.worker_status import NodeStatus, SchedulerAccount, VacantLease
from hypha_worker.market.accounts import Account, Accounts
from hypha_worker.market.ledger import Lease, LedgerState
from hypha_worker.market.ledger_file import LedgerFile
from hypha_worker.runtimes.kubernetes.api import KubernetesApi, retry_until_done
from hypha_worker.runtimes.kubernetes.objects import timestamp

logger = logging.getLogger(__name__)
_write_log = RateLimitedLogger(logger)

_KEEP_S: Final = 2.0
"""How long a scheduler's first renewal waits for the API server. The lease stands even if no answer comes."""
_INTERVAL_S: Final = 0.25
"""The time between two writes. Each write includes every change so far."""


class ClusterLedgerStore:
    """A `LedgerStore` of a pod. Its file lasts as long as the pod, vacant leases as long as the HyphaWorker."""

    def __init__(self, file: LedgerFile, api: KubernetesApi, cluster: KubernetesConfig, *, lease_s: float) -> None:
        self._file = file
        self._api = api
        self._worker = f"/apis/{API_VERSION}/namespaces/{cluster.namespace}/{WORKERS}/{cluster.worker}"
        self._lease_s = lease_s
        self._latest = LedgerState()
        self._kept: Set[UUID] | None = None
        self._kept_accounts = Accounts()
        self._awaited: Set[UUID] = frozenset()
        self._changed = trio.Event()
        self._writes = Changes()

    async def load(self) -> LedgerState | None:
        """Return what this pod saved, or the vacant leases of an earlier pod, each for its full duration."""
        if (saved := await self._file.load()) is not None:
            return saved
        try:
            worker = await retry_until_done("HyphaWorker", partial(self._api.get, self._worker))
            node = NodeStatus.model_validate(worker.get("status", {}).get("node", {}))
        except (Refused, ValidationError) as error:
            logger.warning("leases without a job and accounts cannot be recovered from the HyphaWorker: %s", error)
            return None
        left = node.leases or []
        self._kept, self._kept_accounts = {vacant.id for vacant in left}, _accounts(node)
        deadline = time() + self._lease_s
        return LedgerState(leases=tuple(_lease(vacant, deadline) for vacant in left), accounts=self._kept_accounts)

    async def save(self, state: LedgerState) -> None:
        """Return once the state is on the disk and new vacant leases are in the HyphaWorker, if it can be reached."""
        self._latest = state
        await self._file.save(state)
        vacant = {lease.id for lease in self._vacant()}
        new, self._awaited = vacant - self._awaited, vacant
        self._changed.set()
        with trio.move_on_after(_KEEP_S):
            await self._writes.until(lambda: new <= (self._kept or frozenset()))

    async def run(self) -> None:
        """Write the vacant leases and the accounts whenever they have changed, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            vacant = self._vacant()
            ids = {lease.id for lease in vacant}
            accounts = self._latest.accounts
            if (ids, accounts) == (self._kept, self._kept_accounts):
                continue
            node = {
                "leases": [_vacant_lease(lease).model_dump(mode="json", exclude_none=True) for lease in vacant],
                "accounts": [_account(account).model_dump(mode="json") for account in accounts.of],
                "countedLeases": [str(lease_id) for lease_id in accounts.counted],
            }
            try:
                await self._api.merge(f"{self._worker}/status", {"status": {"node": node}})
                self._kept, self._kept_accounts = ids, accounts
            except ApiError as error:
                _write_log.warning(
                    "HyphaWorker", "cannot write leases without a job and accounts; a new pod loses them: %s", error
                )
                self._changed.set()
            self._writes.notify()
            await trio.sleep(_INTERVAL_S)

    def _vacant(self) -> list[Lease]:
        return [lease for lease in self._latest.leases if lease.state == "held" and lease.task_id is None]


def _vacant_lease(lease: Lease) -> VacantLease:
    return VacantLease(
        id=lease.id,
        scheduler=lease.scheduler,
        request_id=lease.request_id,
        executors=[ExecutorRef(class_=e.class_, name=e.name) for e in dict.fromkeys(lease.executors)],
        resources=Amounts.of(lease.resources),
        price=lease.price,
        accepted=None if lease.accepted is None else timestamp(lease.accepted),
    )


def _lease(vacant: VacantLease, deadline: float) -> Lease:
    return Lease(
        id=vacant.id,
        scheduler=vacant.scheduler,
        request_id=vacant.request_id,
        executors=tuple(ExecutorDescriptor(class_=e.class_, name=e.name) for e in vacant.executors),
        resources=vacant.resources.resources,
        deadline=deadline,
        price=vacant.price,
        state="held",
        accepted=vacant.accepted.timestamp() if vacant.accepted else None,
    )


def _account(account: Account) -> SchedulerAccount:
    return SchedulerAccount(
        scheduler=account.scheduler, leases=account.leases, leased_seconds=account.leased_s, earned=account.earned
    )


def _accounts(node: NodeStatus) -> Accounts:
    return Accounts(
        of=tuple(
            Account(scheduler=a.scheduler, leases=a.leases, leased_s=a.leased_seconds, earned=a.earned)
            for a in node.accounts or ()
        ),
        counted=tuple(node.counted_leases or ()),
    )
