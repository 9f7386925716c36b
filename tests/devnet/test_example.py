"""examples/devnet.yaml: certificates in Secrets with few rights, the demo's job, and images that exist."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from transformers import AutoConfig

from e2e.cluster.tools import ROOT
from hypha_contracts.kubernetes_errors import Forbidden
from hypha_devnet import cluster_secrets
from hypha_devnet.config import SchedulerConfig, SchedulerSection, load
from hypha_devnet.demo import digits, digits_data
from hypha_devnet.demo.models import DIGITS
from hypha_devnet.demo.settings import Files, job_config
from hypha_network.identity import Identity
from hypha_worker.runtimes.kubernetes.api import ApiAccess, open_api
from images.build import settings_of
from support.api_server import ApiServer

pytestmark = pytest.mark.anyio

OBJECTS = list(yaml.safe_load_all((ROOT / "examples" / "devnet.yaml").read_text()))
NAMESPACE = "hypha-devnet"


def named(kind: str, name: str) -> dict[str, Any]:
    return next(item for item in OBJECTS if (item["kind"], item["metadata"]["name"]) == (kind, name))


def pods() -> list[dict[str, Any]]:
    return [item["spec"]["template"]["spec"] for item in OBJECTS if item["kind"] in ("Deployment", "Job")]


def nodes() -> list[str]:
    (container,) = named("Job", "certificates")["spec"]["template"]["spec"]["containers"]
    return [argument.partition("=")[2] for argument in container["args"] if argument.startswith("--node=")]


class TestTheCertificates:
    @pytest.fixture
    def access(self, api_server: ApiServer, namespace: str, tmp_path: Path) -> ApiAccess:
        """Apply the example's Secrets and rights in a namespace of the test; return the rights of the Job."""
        for item in OBJECTS:
            if item["kind"] in ("Secret", "ServiceAccount", "Role", "RoleBinding"):
                text = json.dumps(item).replace(NAMESPACE, namespace)
                api_server.kubectl("apply", "--server-side", "-f-", stdin=text)
        api_server.kubectl("create", "secret", "generic", "foreign", f"-n{namespace}")
        (tmp_path / "token").write_text(api_server.token(namespace, "certificates"))
        return ApiAccess(api_server.url, tmp_path / "token", api_server.ca)

    async def test_the_job_fills_every_secret_once_and_each_node_can_use_its_own(
        self, access: ApiAccess, namespace: str, api_server: ApiServer, tmp_path: Path
    ) -> None:
        async with open_api(access) as api:
            changed = await cluster_secrets.fill_secrets(api, namespace, nodes())
            again = await cluster_secrets.fill_secrets(api, namespace, nodes())
        secrets = {item["metadata"]["name"] for item in OBJECTS if item["kind"] == "Secret"}
        assert (set(changed), again) == (secrets, [])
        peers = set()
        for node in nodes():
            files = []
            for key in ("tls\\.crt", "tls\\.key", "ca\\.crt"):
                template = f'-ogo-template={{{{index .data "{key.replace(chr(92), "")}" | base64decode}}}}'
                text = api_server.kubectl("get", "secret", f"{node}-identity", f"-n{namespace}", template)
                files.append(tmp_path / f"{node}-{len(files)}")
                files[-1].write_text(text)
            peers.add(Identity.load(*files).peer_id)
        assert len(peers) == len(nodes())

    async def test_a_node_that_is_added_later_gets_a_certificate_of_the_same_authority(
        self, access: ApiAccess, namespace: str
    ) -> None:
        async with open_api(access) as api:
            first = await cluster_secrets.fill_secrets(api, namespace, nodes()[:2])
            second = await cluster_secrets.fill_secrets(api, namespace, nodes()[:3])
        assert first[0] == "devnet-authorities"
        assert second == [f"{nodes()[2]}-identity"]

    async def test_the_job_can_read_no_other_secret(self, access: ApiAccess, namespace: str) -> None:
        async with open_api(access) as api:
            with pytest.raises(Forbidden):
                await api.get(f"/api/v1/namespaces/{namespace}/secrets/foreign")


def test_each_node_of_the_manifest_has_a_secret_that_the_job_fills() -> None:
    mounted = {volume["secret"]["secretName"] for pod in pods() for volume in pod["volumes"] if "secret" in volume}
    workers = {item["spec"]["identity"]["secretName"] for item in OBJECTS if item["kind"] == "HyphaWorker"}
    assert mounted | workers == {f"{node}-identity" for node in nodes()}


def test_the_scheduler_runs_the_demo_s_job_with_a_model_without_weights(tmp_path: Path) -> None:
    text = named("ConfigMap", "devnet")["data"]["scheduler.toml"]
    (tmp_path / "scheduler.toml").write_text(text)
    found = load(SchedulerConfig, tmp_path / "scheduler.toml").scheduler
    job = job_config()
    job["model"]["filenames"] = ["config.json"]
    job["resources"] = tomllib.loads(text)["scheduler"]["job"]["resources"]
    assert found == SchedulerSection.model_validate({"job": job})


def test_the_workers_have_what_the_job_asks_for() -> None:
    asked = tomllib.loads(named("ConfigMap", "devnet")["data"]["scheduler.toml"])["scheduler"]["job"]["resources"]
    offered = [
        (item["metadata"]["name"], item["spec"]["resources"]) for item in OBJECTS if item["kind"] == "HyphaWorker"
    ]
    for name, resources in offered:
        wanted = asked["worker" if name.startswith("trainer") else "parameter_server"]
        assert resources == {
            "cpu": f"{round(wanted['cpu'] * 1000)}m",
            "memory": f"{round(wanted['memory'] * 1000)}M",
            "storage": f"{round(wanted['storage'])}G",
        }
    assert sum(name.startswith("trainer") for name, _ in offered) == asked["num_workers"]


def test_every_image_is_the_one_that_make_images_builds() -> None:
    images = {
        container["image"] for pod in pods() for container in (*pod["containers"], *pod.get("initContainers", ()))
    }
    assert images == {settings_of({}).reference("devnet")}


def test_the_digits_are_those_of_the_demo(tmp_path: Path) -> None:
    digits_data.write(tmp_path)
    files = Files(tmp_path)
    train, held_out = digits.samples()
    for inputs, directory in ((train, files.dataset), (held_out, files.held_out)):
        parts = [load_file(path) for path in sorted(directory.iterdir())]
        assert len(parts) == DIGITS.slices
        for name, tensor in inputs.items():
            assert np.array_equal(np.concatenate([part[name] for part in parts]), tensor.numpy())


def test_the_model_without_weights_is_that_of_the_demo(tmp_path: Path) -> None:
    digits_data.write(tmp_path / "cluster")
    digits.save_untrained(tmp_path / "demo")
    ours = AutoConfig.from_pretrained(Files(tmp_path / "cluster").untrained).to_dict()
    demo = AutoConfig.from_pretrained(tmp_path / "demo").to_dict()
    names = {"id2label", "label2id", "dtype", "transformers_version", "_name_or_path"}
    assert {k: v for k, v in ours.items() if k not in names} == {k: v for k, v in demo.items() if k not in names}
    assert len(ours["id2label"]) == len(demo["id2label"]) == 10
