"""Validate the executors of a worker: the API server checks the job of each, and its pod, without creating them."""

import asyncio
import json
import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final

from hypha_contracts.job_reasons import JobReason
from hypha_contracts.kinds import RESOURCE_CLAIM_TEMPLATE, Manifest
from hypha_contracts.kubernetes_errors import ApiError, NotFound
from hypha_contracts.object_status import find_condition
from hypha_contracts.reasons import WorkerReason
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.conditions import Condition
from hypha_operator.offers.trial import Trial, checked
from hypha_operator.pods.refusal import NO_CLAIM_TEMPLATES, refusal_of
from hypha_operator.pods.state import Finding

TYPE: Final = "ExecutorsValid"
_FIRST_PAUSE_S: Final = 600.0
_LONGEST_PAUSE_S: Final = 6 * 3600.0
_FIRST_RETRY_S: Final = 5.0
_LONGEST_RETRY_S: Final = 60.0
_SHARED_S: Final = 60.0
_MAX_SHARED: Final = 4096
_NO_DRY_RUN: Final = "does not support dry run"
"""Part of the API server's message if a webhook has side effects, so that nobody can ask it in advance."""


@dataclass(frozen=True)
class Validation:
    """The last validation of a worker's executors.

    Attributes:
        generation: the HyphaWorker's generation.
        fault: why the API server refuses the job of an executor.
        due_s: the monotonic time of the next validation.
        pause_s: the pause before it, which grows while nothing changes.
    """

    generation: int
    due_s: float
    pause_s: float
    fault: Finding | None = None

    @classmethod
    def of_predecessor(cls, worker: Manifest, now_s: float) -> "Validation | None":
        """Return the validation by another process if it found no fault.

        The next validation takes place 5 to 10 minutes later, so that a restart causes no load.
        """
        generation, before = worker["metadata"]["generation"], find_condition(worker, TYPE)
        if (before.get("status"), before.get("observedGeneration")) != ("True", generation):
            return None
        pause_s = random.uniform(_FIRST_PAUSE_S / 2, _FIRST_PAUSE_S)  # noqa: S311 - not for secrets
        return cls(generation, now_s + pause_s, pause_s)

    def is_current(self, worker: Manifest, now_s: float) -> bool:
        """Whether the next validation is not yet due."""
        return self.generation == worker["metadata"]["generation"] and now_s < self.due_s

    @property
    def condition(self) -> Condition:
        """The condition ExecutorsValid."""
        if self.fault is None:
            message = "The API server accepts a job of each executor."
            return Condition(TYPE, True, WorkerReason.VALIDATED, message)
        return Condition(TYPE, False, self.fault.reason, self.fault.message)


def validated(before: Validation | None, worker: Manifest, fault: Finding | None, now_s: float) -> Validation:
    """Return a new validation with its outcome. The pause grows while the outcome for a generation stays the same."""
    generation = worker["metadata"]["generation"]
    first_s, longest_s = (_FIRST_RETRY_S, _LONGEST_RETRY_S) if fault else (_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
    same = before and before.generation == generation and (before.fault is None) == (fault is None)
    pause_s = min(max(before.pause_s * 2, first_s), longest_s) if same and before else first_s
    return Validation(generation, now_s + pause_s, pause_s, fault)


@dataclass
class _Answer:
    """What the API server said about some jobs. The lock makes several workers wait for one answer."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    until_s: float = 0.0
    fault: Finding | None = None


class Validator:
    """Asks the API server about jobs. Workers whose jobs differ only in the worker's name share an answer."""

    def __init__(self, cluster: Cluster, clock: Clock) -> None:
        self._cluster, self._clock = cluster, clock
        self._answers: OrderedDict[str, _Answer] = OrderedDict()

    async def find_fault(
        self, trials: Sequence[Trial], nameless: Sequence[Trial], *, runs_jobs: bool
    ) -> Finding | None:
        """Return why the API server refuses the first of these jobs that it refuses, or None.

        Args:
            trials: a job of each executor of a worker.
            nameless: the same jobs of a worker whose name is that of all workers.
            runs_jobs: whether the worker runs jobs, which may use up a quota. That is no fault.

        Raises:
            ApiError: the API server did not answer, or refused for a reason that does not concern the jobs.
        """
        objects = [trial.objects for trial in nameless]
        key = sha256(json.dumps([objects, runs_jobs], sort_keys=True).encode()).hexdigest()
        answer = self._answers.setdefault(key, _Answer())
        self._answers.move_to_end(key)
        while len(self._answers) > _MAX_SHARED:
            self._answers.popitem(last=False)
        async with answer.lock:
            if self._clock.monotonic() >= answer.until_s:
                answer.fault = await self._ask(trials, runs_jobs=runs_jobs)
                answer.until_s = self._clock.monotonic() + (_FIRST_RETRY_S if answer.fault else _SHARED_S)
            return answer.fault

    async def _ask(self, trials: Sequence[Trial], *, runs_jobs: bool) -> Finding | None:
        for trial in trials:
            for manifest in checked(trial):
                fault = await fault_of(self._cluster, manifest)
                if fault and not (runs_jobs and fault.reason == JobReason.QUOTA_EXCEEDED):
                    return replace(fault, message=f"Executor {trial.executor}: {fault.message}")
        return None


async def fault_of(cluster: Cluster, manifest: Manifest) -> Finding | None:
    """Return why the API server would refuse to create an object of a job, or None. ApiError if it does not say."""
    try:
        await cluster.check(manifest)
    except ApiError as error:
        if _NO_DRY_RUN in error.message:
            return None
        if isinstance(error, NotFound) and manifest["kind"] == RESOURCE_CLAIM_TEMPLATE.name:
            return Finding(JobReason.INVALID_TEMPLATE, NO_CLAIM_TEMPLATES)
        if (fault := refusal_of(error, manifest["kind"])) is None:
            raise
        return fault
    return None
