"""How much a worker may sell, derived from quotas and nodes."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from e2e.cluster.tools import ROOT
from hypha_operator.offers.limits import Limits, Needs, Node, limits_of, without
from hypha_operator.offers.trial import trial
from hypha_resources.job import Amounts
from support.operating import SETTINGS
from support.operator_objects import LEASE, ROOM, worker_manifest, worker_spec

SMALL = {"cpu": "8", "memory": "32G", "storage": "100G"}
GPU = {"resourceName": "nvidia.com/gpu", "count": 4, "memory": "48G"}
BRIDGE_GB = 0.269  # 256 MiB, rounded up to a thousandth
BRIDGE_LIMIT_GB = 1.074


def needs(**executor: Any) -> list[Needs]:
    """What the jobs of a worker need besides their leases, with these changes of the trainer."""
    manifest = worker_manifest(executor=executor)
    manifest["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    spec = worker_spec(executor=executor)
    amounts = Amounts(**LEASE)
    return [Needs.of(trial(manifest, spec, one, amounts, SETTINGS).pod) for one in spec.executors[:1]]


def node(labels: dict[str, str] | None = None, taints: list[dict[str, str]] | None = None, **has: str) -> Node:
    allocatable = {"cpu": "8", "memory": "32G", "ephemeral-storage": "100G"}
    names = {"gpus": "nvidia.com/gpu", "storage": "ephemeral-storage"}
    allocatable |= {names.get(name, name): amount for name, amount in has.items()}
    manifest = {
        "metadata": {"labels": labels or {}},
        "spec": {"taints": taints or []},
        "status": {"allocatable": allocatable},
    }
    return Node.of(manifest)


def quota(hard: dict[str, str], used: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {"spec": {"hard": hard, **spec}, "status": {"hard": hard, "used": used or {}}}


def limits(
    resources: dict[str, Any],
    *,
    quotas: list[dict[str, Any]] | None = None,
    nodes: list[Node] | None = None,
    running: list[Amounts] | None = None,
    **executor: Any,
) -> Limits:
    spec = worker_spec(resources=resources)
    return limits_of(spec.resources, needs(**executor), quotas or [], nodes or [], running or [])


def test_without_quotas_and_nodes_the_spec_is_the_limit() -> None:
    assert limits(SMALL) == Limits()


def test_a_lease_cannot_have_what_the_bridge_needs_of_a_node() -> None:
    found = limits(SMALL, nodes=[node()])
    assert found.limit == Amounts(cpu=7.9, memory=32 - BRIDGE_GB, storage=100)
    assert found.per_job is None, "like the limit"
    assert found.missing is None


def test_one_job_has_at_most_one_node_and_all_jobs_have_all_nodes() -> None:
    found = limits(SMALL | {"cpu": "14"}, nodes=[node(), node()])
    assert found.limit is None
    assert found.per_job == Amounts(cpu=7.9, memory=32 - BRIDGE_GB, storage=100)


def test_the_containers_of_a_template_count_like_the_bridge() -> None:
    limited = {"requests": {"cpu": "1"}, "limits": {"memory": "1G"}}
    sidecar = {"name": "logs", "image": "logs:1", "resources": limited}
    found = limits(SMALL, nodes=[node()], template={"spec": {"containers": [sidecar]}})
    assert found.limit
    assert found.limit.cpu == 6.9


TAINT = {"key": "gpus", "value": "only", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("found", "pod", "permitted"),
    [
        (node({"zone": "a"}), {"nodeSelector": {"zone": "a"}}, True),
        (node({"zone": "b"}), {"nodeSelector": {"zone": "a"}}, False),
        (node(taints=[TAINT]), {}, False),
        (node(taints=[TAINT]), {"tolerations": [{"key": "gpus", "operator": "Exists"}]}, True),
        (node(taints=[TAINT]), {"tolerations": [{"key": "gpus", "value": "only", "effect": "NoSchedule"}]}, True),
        (node(taints=[TAINT]), {"tolerations": [{"key": "gpus", "value": "other"}]}, False),
        (node(taints=[TAINT]), {"tolerations": [{"operator": "Exists"}]}, True),
        (node(taints=[TAINT | {"effect": "PreferNoSchedule"}]), {}, True),
    ],
)
def test_only_nodes_that_a_job_may_use_count(found: Node, pod: dict[str, Any], permitted: bool) -> None:
    limit = limits(SMALL, nodes=[found, node(taints=[TAINT])], template={"spec": pod})
    assert (limit.missing is None) == permitted
    assert limit.missing is None or "nodeSelector and tolerations" in limit.missing.message


def test_a_cordoned_node_does_not_count() -> None:
    cordoned = replace(node(cpu="64"), cordoned=True)
    assert limits(SMALL, nodes=[cordoned, node()]) == limits(SMALL, nodes=[node()])


def test_devices_on_a_cordoned_node_do_not_lack_their_plugin() -> None:
    found = limits(SMALL | {"gpu": GPU}, nodes=[node(), replace(node(gpus="4"), cordoned=True)])
    assert found.missing
    assert found.missing.reason == "Unschedulable"
    assert "no node with nvidia.com/gpu that accepts pods" in found.missing.message


def test_devices_that_no_node_has_are_missing() -> None:
    found = limits(SMALL | {"gpu": GPU}, nodes=[node()])
    assert found.limit
    assert found.limit.gpu == 0
    assert found.missing
    assert found.missing.reason == "DevicesMissing"
    assert "no node has nvidia.com/gpu: is its device plugin running?" in found.missing.message


def test_devices_on_nodes_that_repel_the_jobs_are_named() -> None:
    found = limits(SMALL | {"gpu": GPU}, nodes=[node(), node(taints=[TAINT], gpus="4")])
    assert found.missing
    assert found.missing.reason == "Unschedulable"
    assert "no node with nvidia.com/gpu" in found.missing.message


def test_a_job_gets_all_its_devices_from_one_node() -> None:
    big = node(cpu="64", memory="512G", storage="1T")
    found = limits(SMALL | {"cpu": "64", "gpu": GPU}, nodes=[node(gpus="2"), node(gpus="2"), big])
    assert found.limit is None
    assert found.per_job
    assert (found.per_job.gpu, found.per_job.cpu) == (96, 7.9), "not the large node's cores, which has no GPUs"


def test_devices_of_dra_are_not_counted_on_nodes() -> None:
    claimed = {"deviceClassName": "gpu.example.org", "count": 2, "memory": "48G"}
    found = limits(SMALL | {"gpu": claimed}, nodes=[node()])
    assert found.missing is None
    assert found.limit
    assert found.limit.gpu == 96


@pytest.mark.parametrize(
    ("hard", "used", "name", "left"),
    [
        ({"cpu": "4"}, {}, "cpu", 3.9),
        ({"requests.cpu": "4"}, {"requests.cpu": "1500m"}, "cpu", 2.4),
        ({"limits.cpu": "4"}, {}, "cpu", 4),
        ({"limits.memory": "10G"}, {}, "memory", round(10 - BRIDGE_LIMIT_GB, 3)),
        ({"requests.memory": "10G", "limits.memory": "10G"}, {}, "memory", round(10 - BRIDGE_LIMIT_GB, 3)),
        ({"requests.ephemeral-storage": "40G"}, {}, "storage", 40),
        ({"requests.nvidia.com/gpu": "3"}, {"requests.nvidia.com/gpu": "1"}, "gpu", 96),
        ({"cpu": "4"}, {"cpu": "4"}, "cpu", 0),
    ],
)
def test_a_quota_leaves_what_others_do_not_use(
    hard: dict[str, str], used: dict[str, str], name: str, left: float
) -> None:
    found = limits(SMALL | {"gpu": GPU}, quotas=[quota(hard, used)])
    whole = {"cpu": 8.0, "memory": 32.0, "storage": 100.0, "gpu": 192.0}
    assert found.limit == Amounts(**whole | {name: left})


def test_what_the_jobs_of_the_worker_use_is_not_lost_to_it() -> None:
    used = {"cpu": "4100m"}
    found = limits(SMALL, quotas=[quota({"cpu": "6"}, used)], running=[Amounts(cpu=4)])
    assert found.limit
    assert found.limit.cpu == 5.8, "6 without the bridges of this job and of the next one"


@pytest.mark.parametrize(
    ("spec", "counts"),
    [
        ({"scopes": ["NotTerminating"]}, True),
        ({"scopes": ["Terminating"]}, False),
        ({"scopes": ["BestEffort"]}, False),
        ({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "Exists"}]}}, False),
    ],
)
def test_a_quota_of_other_pods_does_not_count(spec: dict[str, Any], counts: bool) -> None:
    assert (limits(SMALL, quotas=[quota({"cpu": "1"}, **spec)]).limit is not None) == counts


_COMMON_NODES = {
    4: node(cpu="3420m", memory="12600Mi", storage="47Gi"),
    8: node(cpu="7320m", memory="26Gi", storage="47Gi"),
    16: node(cpu="15390m", memory="57Gi", storage="500Gi", gpus="1"),
    32: node(cpu="31350m", memory="117Gi", storage="900Gi", gpus="8"),
}
"""What jobs can have of nodes with 4 GiB for each core, by their cores: large clouds reserve 0.2 cores and 9 to 16 % of
the memory for the system (7.82 cores and 27.7 GiB are left of 8 and 32), and daemons use half a core and 1 GiB."""


@pytest.mark.parametrize(
    ("example", "cores"),
    [
        ("cert-manager", 4),
        ("dra", 16),
        ("gpu", 32),
        ("gvisor", 8),
        ("hyphaworker", 8),
        ("kueue", 32),
        ("market", 16),
        ("nodeport", 16),
    ],
)
def test_what_the_examples_sell_on_one_node_fits_a_common_node(example: str, cores: int) -> None:
    *_, worker = yaml.safe_load_all((ROOT / "examples" / f"{example}.yaml").read_text())
    resources = worker["spec"]["resources"]
    (on_one_node,) = resources.get("nodes", [resources])
    on_one_node = {name: amount for name, amount in on_one_node.items() if name != "count"}
    assert limits(on_one_node, nodes=[_COMMON_NODES[cores]]) == Limits()


def test_what_a_probe_uses_is_not_sold() -> None:
    resources = worker_spec(resources=SMALL | {"gpu": GPU}).resources
    assert without(Limits(), resources, Amounts(cpu=3, gpu=192)).limit == Amounts(cpu=5, memory=32, storage=100, gpu=0)
    small = Limits(limit=Amounts(cpu=2, memory=1), per_job=Amounts(cpu=1))
    assert without(small, resources, Amounts(cpu=3)) == Limits(Amounts(memory=1), per_job=Amounts(cpu=1))


def test_room_is_measured_in_the_units_of_the_network() -> None:
    assert limits(ROOM, nodes=[node(cpu="9", memory="80Gi", storage="2Ti")]) == Limits()
