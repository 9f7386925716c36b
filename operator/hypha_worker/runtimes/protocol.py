"""The interfaces of the platform that the node runs on and of the runtime that runs its jobs."""

from collections.abc import Awaitable, Callable
from typing import Protocol
from uuid import UUID

from hypha_contracts.node_config import NodeConfig
from hypha_network.identity import Identity
from hypha_network.network import Network
from hypha_worker.connector.http_server import Handler
from hypha_worker.job import AdoptedJob, Job, RunningJobs
from hypha_worker.market.ledger import Ledger, LedgerStore
from hypha_worker.market.request_tally import RequestTally
from hypha_worker.market.settings import Permit
from hypha_worker.progress import Report
from hypha_worker.telemetry import Telemetry

Serve = Callable[[Handler], Awaitable[None]]
"""Serves the connector API with a handler until cancelled."""

Reread = Callable[[], NodeConfig]
"""Reads the configuration again. NodeError if it cannot be used."""

Apply = Callable[[NodeConfig, Permit], None]
"""Takes over a configuration, and what the node may sell."""


class Runtime(RunningJobs, Protocol):
    """Runs jobs. Every launched or adopted job sends exactly one Finished or Failed."""

    async def launch(self, job: Job) -> None:
        """Start the job and return once its processes are on their way. LaunchError if it cannot run here."""

    async def adopt(self) -> list[AdoptedJob]:
        """Find the jobs that outlived the node, and remove the remains of dead ones. Called once, before any launch."""

    async def authenticate(self, token: str) -> UUID | None:
        """Return the task whose bridge presented this token, or None.

        Raises:
            HttpError: (503) the token cannot be checked right now.
        """

    def record_progress(self, task_id: UUID, report: Report) -> None:
        """Record a report of the job to its scheduler. No-op if unknown."""


class Platform(Protocol):
    """An open host or cluster on which a worker runs."""

    @property
    def identity(self) -> Identity:
        """The identity of the node."""

    @property
    def runtime(self) -> Runtime:
        """Runs the jobs."""

    @property
    def ledger_store(self) -> LedgerStore:
        """Keeps the ledger across restarts of the node."""

    @property
    def permit(self) -> Permit:
        """What the node may sell when it starts."""

    @property
    def jobs_outlive_node(self) -> bool:
        """Whether jobs go on when the node stops, for another node to adopt. Otherwise the node ends them."""

    async def follow(self, apply: Apply) -> None:
        """Call `apply` with the configuration and the permit whenever they have changed, until cancelled."""

    async def listen(self, network: Network) -> Serve:
        """Listen for bridges from now on, and return the function that serves them. NodeError if listening fails."""

    async def report_status(self, network: Network, ledger: Ledger, requests: RequestTally) -> None:
        """Report the state of the node to the owner of the worker until cancelled."""

    def observe_jobs(self, telemetry: Telemetry) -> None:
        """Export the resource usage of the jobs."""
