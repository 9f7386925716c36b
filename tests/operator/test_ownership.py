"""Objects that the operator creates by POST follow their HyphaWorker afterwards as if it had applied them."""

from typing import Any

import pytest

from hypha_contracts.kinds import CONFIG_MAP, DEPLOYMENT, NETWORK_POLICY, POD, SERVICE, WORKER, Manifest
from hypha_contracts.names import CONTROLLER
from hypha_operator.machinery.kinds import CHILDREN, Key
from hypha_operator.machinery.ownership import is_handed_over
from support.operating import KilledError, Operating, operating
from support.people import User
from support.resources import worker_manifest

pytestmark = pytest.mark.anyio

LABELLED = {
    "commonLabels": {"team": "a"},
    "controller": {"template": {"spec": {"containers": [{"name": CONTROLLER, "env": [{"name": "A", "value": "1"}]}]}}},
}


async def children(operator: Operating) -> list[Manifest]:
    """Return the worker's objects as the API server has them."""
    return [
        manifest
        for kind in CHILDREN
        if kind != POD
        for manifest in await operator.cluster.find(kind, operator.namespace, label_selector="hypha.space/worker=gpu")
    ]


def environment(manifests: list[Manifest]) -> list[str]:
    (template,) = (manifest["spec"]["template"] for manifest in manifests if manifest["kind"] == DEPLOYMENT.name)
    return [variable["name"] for container in template["spec"]["containers"] for variable in container["env"]]


def assert_plain(manifests: list[Manifest]) -> None:
    """Check that nothing of LABELLED is left."""
    assert [manifest["kind"] for manifest in manifests if "team" in manifest["metadata"]["labels"]] == []
    assert environment(manifests) == ["HYPHA_KUBERNETES__POD_NAME"]


async def test_children_are_created_by_post_apart_from_the_config_map_which_changes_soon(served, namespace, user: User):
    user.apply(worker_manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        applied = [manifest["kind"] for manifest in await children(operator) if is_handed_over(manifest)]
        assert applied == [CONFIG_MAP.name]


async def test_what_the_spec_no_longer_has_is_removed_from_objects_that_were_created_with_it(
    served, namespace, user: User
):
    user.apply(worker_manifest(namespace, **LABELLED))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        before = await children(operator)
        assert all(manifest["metadata"]["labels"]["team"] == "a" for manifest in before)
        assert environment(before) == ["HYPHA_KUBERNETES__POD_NAME", "A"]
        user.apply(worker_manifest(namespace))
        await operator.settle()
        after = await children(operator)
        assert_plain(after)
        assert all(map(is_handed_over, after))
        assert await operator.reconcile_all() == 0


@pytest.mark.parametrize("write", range(1, 4))
async def test_an_operator_that_is_killed_while_it_takes_fields_out_has_a_successor_that_goes_on(
    served, namespace, user: User, write: int
):
    user.apply(worker_manifest(namespace, **LABELLED))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        user.apply(worker_manifest(namespace))
        operator.cluster.kill_at = len(operator.cluster.writes) + write
        with pytest.raises(KilledError):
            await operator.settle()
    async with operating(served.kubeconfig, namespace) as successor:
        await successor.settle()
        assert_plain(await children(successor))


async def test_an_object_that_the_store_does_not_show_yet_follows_a_changed_spec(served, namespace, user: User):
    user.apply(worker_manifest(namespace, **LABELLED))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
    worker = user.apply(worker_manifest(namespace))
    async with operating(served.kubeconfig, namespace) as stale:
        stale.watches.record(WORKER, worker)
        await stale.reconcile(Key(WORKER, namespace, "gpu"))
        assert_plain(await children(stale))


async def test_fields_of_other_clients_stay(served, namespace, user: User):
    user.apply(worker_manifest(namespace, **LABELLED))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        for kind, name in ((SERVICE, "gpu-connector"), (NETWORK_POLICY, "gpu-controller")):
            policy: dict[str, Any] = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": {"name": name}}
            user.merge(policy, {"metadata": {"labels": {"mine": "yes"}}})
        user.apply(worker_manifest(namespace))
        await operator.settle()
        kept = [manifest["kind"] for manifest in await children(operator) if "mine" in manifest["metadata"]["labels"]]
        assert kept == [SERVICE.name, NETWORK_POLICY.name]
        assert_plain(await children(operator))
