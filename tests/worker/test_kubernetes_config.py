"""The table of the configuration that makes jobs pods."""

from pathlib import Path
from typing import Any

import pytest

from hypha_worker.config_file import ConfigError, load
from hypha_worker.errors import NodeError
from hypha_worker.runtimes.kubernetes.api import ApiAccess
from hypha_worker.template import render
from support.worker import ALICE

CONFIG = f"""\
cert_pem = "tls.crt"
key_pem = "tls.key"
trust_pem = "ca.crt"
gateway_addresses = ["/ip4/203.0.113.50/tcp/4001"]
work_dir = "work"

[resources]
cpu = 16
memory = 64
storage = 500

[kubernetes]
namespace = "ns"
worker = "w"
worker_uid = "1-2-3"
peer_id = "{ALICE}"

[[executors]]
class = "train"
name = "diloco-transformer"
runtime = "kubernetes"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "worker.toml"


def read(file: Path, text: str, **environ: str) -> Any:
    file.write_text(text)
    return load(file, environ).config


def test_a_table_for_the_cluster_makes_jobs_pods(file: Path) -> None:
    cluster = read(file, CONFIG).kubernetes
    assert (cluster.namespace, cluster.worker, cluster.worker_uid) == ("ns", "w", "1-2-3")
    assert cluster.peer_id == ALICE
    assert (cluster.connector_port, cluster.audience) == (8443, "hypha-connector")


def test_the_environment_sets_its_keys(file: Path) -> None:
    assert read(file, CONFIG, HYPHA_KUBERNETES__POD_NAME="w-1").kubernetes.pod_name == "w-1"


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ('runtime = "kubernetes"', 'runtime = "process"\ncmd = "uv"', ["train/diloco", 'write runtime = "kubernetes"']),
        ("[kubernetes]", "[offer]\nprice = 1\n[kubernete]", ["kubernete", "Did you mean kubernetes?"]),
        ('runtime = "kubernetes"', 'runtime = "kubernetes"\ncmd = "uv"', ["takes no cmd", "HyphaWorker"]),
        ('namespace = "ns"', 'namespace = "Not a name"', ["kubernetes.namespace"]),
        ('worker_uid = "1-2-3"', "", ["worker_uid", "missing", "Uid of the HyphaWorker"]),
        (f'peer_id = "{ALICE}"', 'peer_id = "12D3"', ["kubernetes.peer_id"]),
        ('worker_uid = "1-2-3"', 'worker_uid = "1-2-3"\nconnector_port = 0', ["kubernetes.connector_port"]),
    ],
)
def test_an_error_names_the_key_and_the_remedy(file: Path, old: str, new: str, parts: list[str]) -> None:
    assert old in CONFIG
    with pytest.raises(ConfigError) as caught:
        read(file, CONFIG.replace(old, new))
    for part in parts:
        assert part in str(caught.value)


def test_an_executor_for_a_cluster_needs_the_table(file: Path) -> None:
    head, _, executors = CONFIG.partition("[kubernetes]")
    with pytest.raises(ConfigError, match=r"no table \[kubernetes\]: add it, or choose another runtime"):
        read(file, head + executors[executors.index("[[") :])


def test_the_template_does_not_mention_clusters() -> None:
    assert "kubernetes" not in render("worker", {})


def test_a_pod_finds_its_api_server() -> None:
    access = ApiAccess.find({"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "6443"})
    assert access.url == "https://10.96.0.1:6443"
    assert ApiAccess.find({"KUBERNETES_SERVICE_HOST": "fd00::1"}).url == "https://[fd00::1]:443"


@pytest.mark.parametrize(
    ("environ", "remedy"),
    [
        ({}, r"Remove the table"),
        ({"HYPHA_KUBE_URL": "https://localhost:1"}, "HYPHA_KUBE_TOKEN_FILE is not. Set all three"),
    ],
)
def test_outside_of_a_cluster_the_error_names_the_remedy(environ: dict[str, str], remedy: str) -> None:
    with pytest.raises(NodeError, match=remedy):
        ApiAccess.find(environ)
