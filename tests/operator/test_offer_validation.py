"""Executors that the API server would refuse are found before any job is sold."""

import json
from typing import Any

import pytest

from hypha_contracts.job_reasons import JobReason
from hypha_contracts.kinds import WORKER, Manifest
from hypha_contracts.names import JOB_LABEL
from hypha_contracts.object_status import find_condition
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.kinds import Key
from hypha_operator.machinery.store import Store
from hypha_operator.offers.limits import Limits
from hypha_operator.offers.observer import OfferObserver
from hypha_operator.offers.validation import Validation
from hypha_operator.pods.state import Finding
from hypha_resources.job import Amounts
from hypha_resources.worker_jobs import Cache
from support.api_server import ApiServer
from support.operating import SETTINGS, Operating, operating
from support.operator_objects import worker_spec
from support.people import User
from support.resources import job_manifest, worker_manifest
from support.webhooks import broken_webhook, denied, webhook

pytestmark = pytest.mark.anyio

PRIVILEGED = {"template": {"spec": {"hostNetwork": True}}, "allowPrivilegedTemplate": True}
FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a field with a typo": (
        {"template": {"spec": {"nodeSelecter": {"zone": "a"}}}},
        "InvalidTemplate",
        "Executor train/diloco-transformer: template.spec.nodeSelecter",
    ),
    "a typo that only the API server knows": (
        {"template": {"spec": {"affinity": {"nodeAffinityy": {}}}}},
        "InvalidTemplate",
        "nodeAffinityy",
    ),
    "a value that the API server refuses": (
        {"template": {"spec": {"nodeSelector": {"not a label!": "x"}}}},
        "InvalidTemplate",
        "nodeSelector",
    ),
    "a host network": (PRIVILEGED, "AdmissionRefused", "violates PodSecurity"),
    "no such priority": (
        {"template": {"spec": {"priorityClassName": "nonsense"}}},
        "AdmissionRefused",
        "no PriorityClass with name nonsense",
    ),
}


def manifest(namespace: str, executor: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A worker with one executor."""
    train = {"class": "train", "name": "diloco-transformer", **(executor or {})}
    return worker_manifest(namespace, **{"executors": [train], **spec})


def told(worker: Manifest | None, type_: str = "ExecutorsValid") -> tuple[str, str]:
    found = find_condition(worker, type_)
    return found["status"], found["reason"]


async def reconcile(operator: Operating) -> float | None:
    await operator.observe()
    return await operator.reconcile(Key(WORKER, operator.namespace, "gpu"))


def test_a_worker_of_whose_spec_no_job_can_be_built_is_told_which_executor_and_field_is_wrong() -> None:
    cache = Cache.model_construct(claim="models", max_bytes="500m")
    spec = worker_spec()
    spec = spec.model_copy(update={"jobs": spec.jobs.model_copy(update={"cache": cache})})
    worker = worker_manifest("gpu")
    worker["metadata"] |= {"uid": "1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    observer = OfferObserver(Store(), None, Clock(), SETTINGS, None)  # type: ignore[arg-type]
    finding = observer._trials(worker, spec, Limits())
    assert isinstance(finding, Finding)
    assert finding.reason == JobReason.INVALID_TEMPLATE
    assert finding.message.startswith("Executor train/diloco-transformer: the HyphaWorker's spec.max_bytes")


def fill_quota(server: ApiServer, namespace: str, hard: dict[str, str]) -> None:
    """Make a quota that is used up. No controller counts here, so write its status."""
    quota = {"metadata": {"name": "full"}, "spec": {"hard": hard}}
    made = server.post(f"/api/v1/namespaces/{namespace}/resourcequotas", quota)
    with server.client() as client:
        path = f"/api/v1/namespaces/{namespace}/resourcequotas/full/status"
        client.put(path, json=made | {"status": {"hard": hard, "used": hard}}).raise_for_status()


async def test_a_worker_whose_executors_are_accepted_may_sell(served, namespace, user):
    worker = user.apply(manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        assert [check.rpartition("/")[2] for check in operator.cluster.checks] == ["networkpolicies", "jobs", "pods"]
    shown = user.get(worker)
    assert told(shown) == ("True", "Validated")
    assert told(shown, "JobsStart") == ("Unknown", "NotTried")
    assert shown["status"]["offering"] == {"enabled": True}


@pytest.mark.parametrize(("executor", "reason", "words"), FAULTS.values(), ids=FAULTS)
async def test_a_worker_may_not_sell_an_executor_with(served, executor, reason, words):
    namespace = served.namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})
    user = User(served, namespace)
    worker = user.apply(manifest(namespace, executor))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        shown = user.get(worker)
        assert told(shown) == ("False", reason)
        assert words in find_condition(shown, "ExecutorsValid")["message"]
        assert shown["status"]["offering"]["enabled"] is False
        assert told(shown, "Stalled") == ("True", "ExecutorsInvalid")
        assert words in find_condition(shown, "Ready")["message"]
        assert words in user.events()["ExecutorsInvalid"]["message"]
        user.apply(manifest(namespace))
        await operator.settle()
        shown = user.get(worker)
        assert told(shown) == ("True", "Validated")
        assert shown["status"]["offering"]["enabled"] is True


WITHOUT_MATCH_LABELS = {"egress": [{"to": [{"podSelector": {"app": "mirror"}}]}]}


async def test_a_worker_whose_jobs_would_get_no_network_policy_may_not_sell(served, namespace, user):
    worker = user.apply(manifest(namespace, jobs=WITHOUT_MATCH_LABELS))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        shown = user.get(worker)
        assert told(shown) == ("False", "InvalidTemplate")
        message = find_condition(shown, "ExecutorsValid")["message"]
        assert "the API server refuses the NetworkPolicy" in message
        assert "podSelector.app" in message
        assert "Correct `jobs.egress`" in message
        assert shown["status"]["offering"]["enabled"] is False


async def test_a_quota_that_leaves_no_network_policy_is_found_before_a_job_is_sold(served, namespace, user):
    worker = user.apply(manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        fill_quota(served, namespace, {"count/networkpolicies.networking.k8s.io": "2"})
        user.apply(manifest(namespace, {"env": {"A": "b"}}))
        await operator.settle()
    assert told(user.get(worker)) == ("False", "QuotaExceeded")


async def test_a_policy_that_refuses_the_network_policies_of_jobs_is_found_before_a_job_is_sold(
    served, namespace, user, tmp_path
):
    def no_jobs(request: dict[str, Any]) -> dict[str, Any]:
        refused = request["object"]["spec"]["podSelector"].get("matchLabels", {}).keys() == {JOB_LABEL}
        return denied("egress belongs to the network team") if refused else {"allowed": True}

    resource = "networking.k8s.io/networkpolicies"
    with webhook(served, namespace, "validating", resource, no_jobs, tmp_path / "pki"):
        worker = user.apply(manifest(namespace))
        async with operating(served.kubeconfig, namespace) as operator:
            await operator.settle()
    shown = user.get(worker)
    assert told(shown) == ("False", "AdmissionRefused")
    message = find_condition(shown, "ExecutorsValid")["message"]
    assert "admission refuses the NetworkPolicy" in message
    assert "egress belongs to the network team" in message
    assert "in `jobs.egress` or `commonLabels`" in message


async def test_a_full_quota_is_found_and_its_mending_noticed_within_a_minute(served, namespace, user):
    fill_quota(served, namespace, {"pods": "1"})
    worker = user.apply(manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        shown = user.get(worker)
        assert told(shown) == ("False", "QuotaExceeded")
        assert "Raise the ResourceQuota" in find_condition(shown, "ExecutorsValid")["message"]
        assert shown["status"]["offering"]["enabled"] is False
        with served.client() as client:
            client.delete(f"/api/v1/namespaces/{namespace}/resourcequotas/full").raise_for_status()
        memory = next(iter(operator.reconcilers[WORKER]._offers._memories.values()))
        assert memory.validation.pause_s <= 60
        after_s = await reconcile(operator)
        assert after_s is not None
        assert after_s <= 60


async def test_a_quota_that_the_worker_s_own_jobs_use_up_is_no_fault(served, namespace, user):
    worker = user.apply(manifest(namespace))
    job = user.apply(job_manifest(namespace, worker), manager="hypha-worker")
    user.status(job, "hypha-operator", phase="Running", podUid="1", podName="x")
    fill_quota(served, namespace, {"pods": "1"})
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.observe()
        await reconcile(operator)
    assert told(user.get(worker)) == ("True", "Validated")


def use_quota(server: ApiServer, namespace: str, used: str) -> None:
    """Say how much of a quota of 10 cores is used, as a controller does."""
    status = json.dumps({"status": {"hard": {"requests.cpu": "10"}, "used": {"requests.cpu": used}}})
    server.kubectl("patch", f"-n{namespace}", "quota/small", "--subresource=status", "--type=merge", "-p", status)


async def test_offers_are_no_larger_than_what_the_quota_leaves(served, namespace, user):
    quota = {"metadata": {"name": "small"}, "spec": {"hard": {"requests.cpu": "10"}}}
    served.post(f"/api/v1/namespaces/{namespace}/resourcequotas", quota)
    use_quota(served, namespace, "2")
    worker = user.apply(manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        offering = user.get(worker)["status"]["offering"]
        assert offering["limit"]["cpu"] == 7.9, "10 cores, without the 2 that are used and the 0.1 of the bridge"
        assert offering["enabled"] is True
        job = user.apply(job_manifest(namespace, worker, resources=Amounts(cpu=4).model_dump()), manager="hypha-worker")
        user.status(job, "hypha-operator", phase="Running", podUid="1", podName="x")
        use_quota(served, namespace, "6100m")
        await operator.settle()
    offering = user.get(worker)["status"]["offering"]
    assert offering["limit"]["cpu"] == 7.8, "less by the bridge of the job, whose pod the quota counted at once"


async def test_a_webhook_that_does_not_answer_is_named(served, namespace, user):
    worker = user.apply(manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        with broken_webhook(served, namespace):
            user.apply(manifest(namespace, {"env": {"A": "b"}}))
            await operator.observe()
            await reconcile(operator)
            shown = user.get(worker)
            assert told(shown) == ("False", "AdmissionRefused")
            assert "broken.example.org" in find_condition(shown, "ExecutorsValid")["message"]


async def test_a_settled_worker_is_not_checked_again_and_again(served, namespace, user):
    user.apply(manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        before = list(operator.cluster.checks)
        for _ in range(5):
            await operator.reconcile_all()
        assert operator.cluster.checks == before
    async with operating(served.kubeconfig, namespace) as successor:
        await successor.settle()
        assert successor.cluster.checks == [], "the status says that the executors are valid"


async def test_workers_with_the_same_executors_share_an_answer_and_others_do_not(served, namespace, user):
    async with operating(served.kubeconfig, namespace) as operator:
        for name in ("one", "two", "three"):
            user.apply(worker_manifest(namespace, name, executors=manifest(namespace)["spec"]["executors"]))
        user.apply(
            worker_manifest(namespace, "other", executors=manifest(namespace, {"env": {"A": "b"}})["spec"]["executors"])
        )
        await operator.settle()
        assert len(operator.cluster.checks) == 3 * 2
        for name in ("one", "two", "three", "other"):
            assert told(user.get(worker_manifest(namespace, name))) == ("True", "Validated")


async def test_the_api_server_keeps_nothing_of_what_it_checked(served, namespace, user):
    user.apply(manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        assert operator.cluster.checks
        assert [name for name in await operator.objects() if name.startswith(("Job ", "Pod "))] == []


def test_the_first_validation_after_a_restart_takes_place_5_to_10_minutes_later():
    valid = {"type": "ExecutorsValid", "status": "True", "observedGeneration": 1}
    worker = {"metadata": {"generation": 1}, "status": {"conditions": [valid]}}
    due_s = [before.due_s for _ in range(200) if (before := Validation.of_predecessor(worker, 0.0))]
    assert len(due_s) == 200
    assert 300 <= min(due_s) < 330
    assert 570 < max(due_s) <= 600
