"""Two releases whose scopes overlap: exactly one of them serves a namespace, and the other one says which."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from chart.operator_process import OperatorProcess, Release
from chart.rendering import Manifest
from support.api_server import ApiServer, PrivateApiServer
from support.resources import install_definitions, worker_manifest
from support.waiting import until

Start = Callable[[Release], OperatorProcess]


@pytest.fixture
def api(private_api_server: PrivateApiServer) -> ApiServer:
    install_definitions(private_api_server.api)
    return private_api_server.api


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a release's operator."""
    with ExitStack() as stack:

        def started(release: Release) -> OperatorProcess:
            name = release.name.replace("/", "-")
            operator = release.start(tmp_path / f"{name}.log", name)
            stack.callback(operator.kill)
            return operator

        yield started


def create_worker(api: ApiServer, namespace: str, name: str = "gpu") -> None:
    api.post(f"/apis/hypha.space/v1alpha1/namespaces/{namespace}/hyphaworkers", worker_manifest(namespace, name))


def is_served(api: ApiServer, namespace: str, name: str = "gpu") -> bool:
    return "Starting" in api.kubectl("get", "hyphaworker", name, f"-n{namespace}", "-oyaml")


def holder(api: ApiServer, namespace: str) -> str:
    lease: Manifest = yaml.safe_load(api.kubectl("get", "lease", "hypha-operator", f"-n{namespace}", "-oyaml"))
    return str(lease["spec"].get("holderIdentity", ""))


def leases(api: ApiServer) -> list[str]:
    names = api.kubectl("get", "leases", "-A", "-ocustom-columns=:metadata.namespace,:metadata.name", "--no-headers")
    return [line for line in names.splitlines() if "hypha-operator" in line]


@pytest.mark.parametrize("values", [{}, {"watchNamespace": "training"}], ids=["of the cluster", "of one namespace"])
def test_a_second_release_of_the_same_scope_is_not_ready_and_takes_over_when_the_first_is_gone(
    api: ApiServer, start: Start, values: Manifest
) -> None:
    api.post("/api/v1/namespaces", {"metadata": {"name": "training"}})
    create_worker(api, "training")
    first = Release(api, values)
    one = start(first)
    until(lambda: one.is_ready, timeout_s=60)
    other = start(Release(api, values))
    until(lambda: f"release {first.name} serves" in other.probe("/readyz")[1], timeout_s=60)
    assert other.probe("/readyz")[0] == 503
    assert other.probe("/healthz") == (200, "ok")
    assert one.end() == 0
    until(lambda: other.probe("/readyz") == (200, "leads"))


def test_a_release_of_a_namespace_that_one_of_the_cluster_serves_is_not_ready(api: ApiServer, start: Start) -> None:
    namespace, cluster = api.namespace(), Release(api, {})
    create_worker(api, namespace)
    start(cluster)
    until(lambda: is_served(api, namespace), timeout_s=60)
    assert holder(api, namespace) == f"{cluster.name}/all"
    confined = start(Release(api, {"watchNamespace": namespace}))
    message = f"release {cluster.name} serves namespace {namespace}. Uninstall one of the two releases"
    until(lambda: message in confined.probe("/readyz")[1], timeout_s=60)


def test_a_release_of_the_cluster_leaves_a_namespace_to_the_release_that_serves_it(
    api: ApiServer, start: Start
) -> None:
    namespace = api.namespace()
    confined = Release(api, {"watchNamespace": namespace})
    operator = start(confined)
    until(lambda: operator.is_ready, timeout_s=60)
    create_worker(api, namespace)
    until(lambda: is_served(api, namespace))
    version = api.kubectl("get", "hyphaworker", "gpu", f"-n{namespace}", "-ojsonpath={.metadata.resourceVersion}")
    cluster = start(Release(api, {}))
    until(lambda: cluster.probe("/readyz") == (200, "leads"), timeout_s=60)
    until(
        lambda: (
            f"release {confined.name} serves namespace {namespace}" in api.kubectl("get", "events", f"-n{namespace}")
        )
    )
    elsewhere = api.namespace()
    create_worker(api, elsewhere)
    until(lambda: is_served(api, elsewhere))
    now = api.kubectl("get", "hyphaworker", "gpu", f"-n{namespace}", "-ojsonpath={.metadata.resourceVersion}")
    assert now == version


def test_a_release_of_the_cluster_gives_a_namespace_up_with_its_last_worker(api: ApiServer, start: Start) -> None:
    namespace = api.namespace()
    start(Release(api, {}))
    for name in ("one", "other"):
        create_worker(api, namespace, name)
        until(lambda name=name: is_served(api, namespace, name), timeout_s=60)  # type: ignore[misc]
    api.kubectl("delete", "hyphaworker", "one", f"-n{namespace}")
    assert len(leases(api)) == 2
    api.kubectl("delete", "hyphaworker", "other", f"-n{namespace}")
    until(lambda: len(leases(api)) == 1)
    assert leases(api)[0].split() == ["default", "hypha-operator-cluster"]
