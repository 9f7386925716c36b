"""The commands of the pages for a cluster, run as they are written, against an API server where nothing runs pods."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from documentation.commands import Block, as_written
from documentation.pages import ROOT
from e2e.cluster.tools import tool
from support.api_server import ApiServer, PrivateApiServer
from support.kubectl import Scene, condition
from support.resources import install_definitions, worker_manifest

HERE = "tests/documentation/test_commands_on_a_cluster.py"


def of_test(name: str) -> pytest.MarkDecorator:
    """Run a test with each block that has its mark."""
    return pytest.mark.parametrize("block", as_written(f"{HERE}::{name}"), ids=lambda block: block.place)


def enter(commands: str, server: ApiServer, directory: Path) -> str:
    """Run commands as the administrator of a cluster does, in a checkout of the project; return the output."""
    programs = {Path(sys.executable).parent, *(Path(tool(name)).parent for name in ("kubectl", "helm"))}
    path = ":".join((*map(str, programs), os.environ["PATH"]))
    environment = os.environ | {"KUBECONFIG": str(server.kubeconfig), "PATH": path, "HOME": str(directory)}
    line = ("bash", "-euo", "pipefail", "-c", commands)
    done = subprocess.run(line, cwd=directory, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory with what the commands take from the repository, and the files of a certificate."""
    for name in ("charts", "crds", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("cert.pem", "key.pem", "trust.pem"):
        (tmp_path / name).write_text("PEM")
    return tmp_path


@of_test("test_a_worker_is_installed_by_the_commands_of_a_page")
def test_a_worker_is_installed_by_the_commands_of_a_page(
    block: Block, private_api_server: PrivateApiServer, checkout: Path
) -> None:
    server = private_api_server.api
    if "helm" not in block.text:
        install_definitions(server)
    elif "crds/" in block.text:
        server.kubectl("create", "namespace", "hypha")
    enter(block.text, server, checkout)
    assert "hyphaworkers" in server.kubectl("api-resources", "--api-group=hypha.space")
    if "examples/hyphaworker.yaml" in block.text:
        assert server.kubectl("get", "hyphaworkers", "-nhypha", "-oname") == "hyphaworker.hypha.space/worker\n"
        identity = server.kubectl("get", "secret", "-nhypha", "worker-identity", "-ojsonpath={.data}")
        assert set(json.loads(identity)) == {"ca.crt", "tls.crt", "tls.key"}


@of_test("test_a_worker_is_changed_by_the_commands_of_a_page")
def test_a_worker_is_changed_by_the_commands_of_a_page(
    block: Block, private_api_server: PrivateApiServer, checkout: Path
) -> None:
    server = private_api_server.api
    install_definitions(server)
    server.kubectl("create", "namespace", "ns")
    server.post("/apis/hypha.space/v1alpha1/namespaces/default/hyphaworkers", worker_manifest("default"))
    for command in block.commands():
        assert enter(command, server, checkout).endswith((" patched\n", " created\n"))


@of_test("test_jobs_are_awaited_and_found_by_the_commands_of_a_page")
def test_jobs_are_awaited_and_found_by_the_commands_of_a_page(
    block: Block, private_api_server: PrivateApiServer, checkout: Path
) -> None:
    server = private_api_server.api
    install_definitions(server)
    server.kubectl("create", "namespace", "ns")
    scene = Scene(server, "ns")
    job = scene.job(scene.worker("w"), "Failed")
    scene.phase(job, "Failed", condition("Complete", True, "Completed"))
    name = job["metadata"]["name"]
    awaited, found = (enter(command.replace("NAME", name), server, checkout) for command in block.commands())
    assert f"{name} condition met" in awaited
    assert name in found
