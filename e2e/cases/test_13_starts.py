"""Workers whose jobs the cluster cannot start. Each names its fault and the remedy, and sells nothing meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from e2e import installation
from e2e.devnet import Devnet
from e2e.kube import Kube, Object, eventually
from e2e.tasks import SMALL, Tasks
from e2e.workers import Namespaces, Worker, job_of, program_spec

_NAMED_S = 60
_STARTED_S = 120
_MAX_FAILED = 2
_NOTHING = "registry.invalid/nobody/nothing:0"
_DEVICES = {"gpu": {"resourceName": "example.org/nowhere", "count": 1, "memory": "1G"}}
_TYPO = {"spec": {"nodeSelecter": {"zone": "a"}}}
_QUOTA = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "full"},
    "spec": {"hard": {"limits.memory": "600M"}},  # enough for the controller
}


@dataclass(frozen=True)
class Fault:
    """One fault of a worker, and what its conditions must say.

    Attributes:
        executor: the faulty fields of its executor.
        resources: the faulty fields of its resources.
        reason: the reason of the condition that is False.
        words: a part of the message, which names the fault.
        remedy: a part of the message, which says what to do.
    """

    reason: str
    words: str
    remedy: str
    executor: Object
    resources: Object
    condition: str = "JobsStart"


IMAGE = Fault("ImagePull", _NOTHING, "Correct the image's name", {"image": _NOTHING}, {})
QUEUE = Fault("QueueTimeout", "queue has not admitted", "Give the queue", {"queueName": "without-quota"}, {})
DEVICES = Fault("DevicesMissing", "o node has example.org/nowhere", "device plugin", {}, _DEVICES)
NOWHERE = Fault(
    "Unschedulable",
    "o node that accepts pods matches",
    "Correct executors.template",
    {"template": {"spec": {"nodeSelector": {"e2e.hypha.space/nowhere": "true"}}}},
    {},
)
TYPO = Fault("InvalidTemplate", "nodeSelecter", "remove it", {"template": _TYPO}, {}, "ExecutorsValid")
QUOTA = Fault("QuotaExceeded", "exceeded quota: full", "Raise the ResourceQuota", {}, {}, "ExecutorsValid")


class Seller:
    """A worker, of which a scheduler takes every offer."""

    def __init__(self, worker: Worker, tasks: Tasks, kube: Kube) -> None:
        self.worker, self._tasks, self._kube = worker, tasks, kube
        self._sound = worker.spec["executors"][0]

    def set(self, *faults: Fault) -> "Seller":
        """Give the worker these faults, and no others."""
        executor, resources = dict(self._sound), dict(self.worker.spec["resources"])
        for fault in faults:
            executor |= fault.executor
            resources |= fault.resources
        self.worker.spec |= {"executors": [executor]}
        self.worker.kube.apply(self.worker.object | {"spec": self.worker.spec | {"resources": resources}})
        return self

    @property
    def sells(self) -> bool:
        """Whether the operator lets it make offers."""
        return bool(self.worker.get().get("status", {}).get("offering", {}).get("enabled"))

    def names(self, fault: Fault) -> None:
        """Wait until its condition names a fault and the remedy."""

        def found() -> bool:
            named = self.worker.condition(fault.condition)
            message = named.get("message", "")
            return named.get("reason") == fault.reason and fault.words in message and fault.remedy in message

        eventually(f"{self.worker.name} names {fault.words}", found, _NAMED_S)

    def sell(self) -> int:
        """Take offers until the worker makes none. Return how many jobs failed."""
        eventually("it is connected", lambda: self.worker.condition("Connected").get("status") == "True", _STARTED_S)
        failed = 0
        while self.sells:
            assert failed <= _MAX_FAILED, "it sells job after job"
            try:
                task = self._tasks.run(self.worker.peer_id, "pass", resources=SMALL)
            except trio.TooSlowError:
                continue  # it makes no offers any more
            assert task.ended(_STARTED_S) == "Failed"
            assert "startTime" not in job_of(self._kube, self.worker, task)["status"]
            failed += 1
        return failed

    def is_mended(self) -> None:
        """Assert that it sells again, and that a job runs."""
        eventually("a probe has started", lambda: self.worker.condition("JobsStart").get("status") == "True", _NAMED_S)
        eventually("it sells", lambda: self.sells)
        assert self._tasks.run(self.worker.peer_id, "pass", resources=SMALL).ended() == "Finished"


Sellers = Callable[[str, str], Any]


@pytest.fixture
def sellers(kube: Kube, devnet: Devnet, namespaces: Namespaces, tasks: Tasks) -> Sellers:
    """Makes workers, which the operator has not seen before their faults are set."""

    @contextmanager
    def make(name: str, namespace: str) -> Iterator[Seller]:
        spec = program_spec(devnet, name, installation.image(kube, "HYPHA_PARAMETER_SERVER_IMAGE"))
        spec["jobs"] |= {"startPatienceSeconds": 10, "queueTimeoutSeconds": 15}
        del spec["resources"]["gpu"]
        worker = Worker(kube, devnet, namespaces(namespace), name, spec)
        kube.apply(devnet.secret(spec["identity"]["secretName"], worker.namespace, worker.node))
        try:
            yield Seller(worker, tasks, kube)
        finally:
            worker.delete()

    return make


@pytest.mark.long
@pytest.mark.parametrize(
    "fault", [pytest.param(IMAGE, id="its image does not exist"), pytest.param(QUEUE, id="its queue admits nothing")]
)
def test_a_worker_fails_at_most_two_jobs_and_names_the_fault_if(sellers: Sellers, fault: Fault) -> None:
    with sellers("blocked", "hypha-e2e-starts") as seller:
        seller.set(fault)
        assert seller.sell() <= _MAX_FAILED
        seller.names(fault)
        seller.set()
        seller.is_mended()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(DEVICES, id="no node has its devices"),
        pytest.param(NOWHERE, id="no node matches its template"),
        pytest.param(TYPO, id="its template has a typo"),
    ],
)
def test_a_worker_sells_nothing_and_names_the_fault_if(sellers: Sellers, fault: Fault) -> None:
    with sellers("blocked", "hypha-e2e-starts") as seller:
        seller.set(fault).names(fault)
        assert seller.sell() == 0
        seller.set()
        eventually("it sells", lambda: seller.sells)
        assert seller.worker.jobs() == []


def test_a_worker_in_a_namespace_whose_quota_is_full_sells_nothing_until_there_is_more(
    sellers: Sellers, kube: Kube, namespaces: Namespaces
) -> None:
    namespace = namespaces("hypha-e2e-quota")
    kube.apply(_QUOTA | {"metadata": {"name": "full", "namespace": namespace}})
    with sellers("poor", namespace) as seller:
        seller.set().names(QUOTA)
        assert seller.sell() == 0
        kube.delete("resourcequotas", namespace, "full")
        eventually("it sells", lambda: seller.sells, _NAMED_S)


def test_a_worker_with_all_faults_names_the_first_one_and_the_next_once_that_is_mended(
    sellers: Sellers, kube: Kube, namespaces: Namespaces
) -> None:
    namespace = namespaces("hypha-e2e-quota")
    kube.apply(_QUOTA | {"metadata": {"name": "full", "namespace": namespace}})
    with sellers("hopeless", namespace) as seller:
        seller.set(IMAGE, QUEUE, DEVICES, TYPO).names(TYPO)
        seller.set(IMAGE, QUEUE, DEVICES).names(QUOTA)
        kube.delete("resourcequotas", namespace, "full")
        seller.names(DEVICES)
        seller.set(IMAGE, QUEUE).names(QUEUE)
        seller.set(IMAGE).names(IMAGE)
        assert seller.worker.jobs() == [], "probes found all of them"
        seller.set()
        seller.is_mended()
