"""The children of a HyphaJob: a Job with its pod, a NetworkPolicy, a claim for devices."""

import ipaddress
import json
from typing import Any

import pytest

from hypha_contracts.times import LEASE_GRACE_S
from hypha_operator.jobs.children import job_children
from hypha_operator.pods.executor import UnbuildableJobError
from hypha_operator.pods.overlay import OverlayError
from hypha_resources.job import HyphaJobSpec
from hypha_resources.worker import HyphaWorkerSpec
from support.addresses import PUBLIC, SPECIAL
from support.api_server import ApiServer
from support.operating import SETTINGS
from support.operator_objects import AGGREGATE, GPU, LEASE, PEER, ROOM, WORKER, hypha_job, worker_manifest
from support.pod_security import breaches_of_isolation, breaches_of_restricted


def built(
    job: dict[str, Any] | None = None, worker: dict[str, Any] | None = None, **changes: Any
) -> dict[str, dict[str, Any]]:
    """Return the children by kind. `changes` replace fields of the job's specification."""
    manifest = job or hypha_job(**changes)
    spec = HyphaJobSpec.model_validate(manifest["spec"])
    hypha_worker = HyphaWorkerSpec.model_validate((worker or worker_manifest())["spec"])
    return {child["kind"]: child for child in job_children(manifest, spec, hypha_worker, SETTINGS)}


def pod(children: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = children["Job"]["spec"]["template"]["spec"]
    return spec


def executor(children: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return next(c for c in pod(children)["containers"] if c["name"] == "executor")


def bridge(children: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return next(c for c in pod(children)["initContainers"] if c["name"] == "bridge")


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"]}


def mounts(container: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    return {m["mountPath"]: (m["name"], m.get("subPath")) for m in container["volumeMounts"]}


def test_every_child_has_the_name_owner_and_labels_of_its_job() -> None:
    job = hypha_job()
    for child in built(job).values():
        metadata = child["metadata"]
        assert (metadata["name"], metadata["namespace"]) == (job["metadata"]["name"], "gpu")
        assert [(o["uid"], o["controller"]) for o in metadata["ownerReferences"]] == [(job["metadata"]["uid"], True)]
        assert metadata["labels"]["hypha.space/job"] == job["metadata"]["name"]
        assert metadata["labels"]["hypha.space/worker"] == WORKER


def test_the_network_policy_precedes_the_job_that_it_isolates() -> None:
    assert list(built()) == ["NetworkPolicy", "Job"]


def test_the_pod_is_restricted_and_isolated() -> None:
    template = built()["Job"]["spec"]["template"]
    assert breaches_of_restricted(template["spec"]) == []
    assert breaches_of_isolation(template, grace_s=150, identity={"gpu-worker-identity"}) == []
    for container in (executor(built()), bridge(built())):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_requests_and_limits_are_the_lease_in_bytes_of_gigabytes() -> None:
    resources = executor(built(resources={"cpu": 2.5, "memory": 16.5, "storage": 100.0, "gpu": 0.0}))["resources"]
    assert resources["limits"] == {"cpu": "2500m", "memory": "16500000000"}
    assert resources["requests"] == resources["limits"] | {"ephemeral-storage": "100000000000"}


def test_storage_limits_the_volume_and_shared_memory_is_half_of_the_memory() -> None:
    volumes = {volume["name"]: volume for volume in pod(built())["volumes"]}
    assert volumes["job"]["emptyDir"] == {"sizeLimit": "100000000000"}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8000000000"}


def test_resources_that_a_lease_does_not_name_have_limits() -> None:
    children = built(resources={"cpu": 0, "memory": 0, "storage": 0, "gpu": 0})
    assert executor(children)["resources"]["limits"] == {"cpu": "1m", "memory": "1"}
    assert pod(children)["volumes"][0]["emptyDir"] == {"sizeLimit": "1"}


@pytest.mark.parametrize(
    ("gpu_gb", "devices"), [(1.0, "1"), (51.539607552, "1"), (51.54, "2"), (206.158430208, "4"), (206.1584302081, "4")]
)
def test_devices_hold_the_lease_s_video_memory(gpu_gb: float, devices: str) -> None:
    limits = executor(built(resources=LEASE | {"gpu": gpu_gb}))["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == devices


@pytest.mark.parametrize("name", ["nvidia.com/mig-1g.10gb", "amd.com/gpu"])
def test_devices_are_counted_by_the_worker_s_resource(name: str) -> None:
    worker = worker_manifest(resources=ROOM | {"gpu": GPU | {"resourceName": name}})
    resources = executor(built(worker=worker, job=hypha_job(resources=LEASE | {"gpu": 60.0})))["resources"]
    assert resources["limits"][name] == resources["requests"][name] == "2"


def test_devices_may_be_claimed_by_class() -> None:
    worker = worker_manifest(resources=ROOM | {"gpu": GPU | {"deviceClassName": "gpu.nvidia.com"}})
    children = built(worker=worker, job=hypha_job(resources=LEASE | {"gpu": 60.0}))
    assert list(children) == ["NetworkPolicy", "ResourceClaimTemplate", "Job"]
    template = children["ResourceClaimTemplate"]
    request = template["spec"]["spec"]["devices"]["requests"][0]
    assert request["exactly"] == {"deviceClassName": "gpu.nvidia.com", "allocationMode": "ExactCount", "count": 2}
    assert pod(children)["resourceClaims"] == [
        {"name": "gpu", "resourceClaimTemplateName": template["metadata"]["name"]}
    ]
    resources = executor(children)["resources"]
    assert resources["claims"] == [{"name": "gpu"}]
    assert "nvidia.com/gpu" not in resources["limits"]


def test_a_job_without_devices_cannot_use_the_devices_of_the_node() -> None:
    assert environment(executor(built()))["NVIDIA_VISIBLE_DEVICES"] == "void"
    with_gpu = executor(built(resources=LEASE | {"gpu": 1.0}))
    assert "NVIDIA_VISIBLE_DEVICES" not in environment(with_gpu)


def test_the_bridge_is_a_sidecar_that_is_up_before_the_executor_starts() -> None:
    sidecar = bridge(built())
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["startupProbe"]["exec"]["command"] == ["test", "-S", "/job/work/bridge.sock"]
    assert "command" not in sidecar


def test_the_bridge_has_its_configuration_and_no_secret() -> None:
    worker = worker_manifest(jobs={"readAhead": 3, "terminationGraceSeconds": 60, "hubEndpoint": "http://hub:8080"})
    children = built(worker=worker)
    config = json.loads(environment(bridge(children))["HYPHA_BRIDGE_CONFIG"])
    assert config == {
        "job_file": "/etc/hypha/job/job.json",
        "work_dir": "/job/work",
        "socket": "/job/work/bridge.sock",
        "state_dir": "/job/state",
        "storage_bytes": 100_000_000_000,
        "drain_s": 60,
        "read_ahead": 3,
        "allow_private_addresses": False,
        "exclude_cidr": [],
        "hub_endpoint": "http://hub:8080",
        "connector": {
            "url": "https://gpu-worker-connector.gpu.svc:8443",
            "peer_id": PEER,
            "token_file": "/var/run/hypha/token/token",
            "deadline_s": 120,
        },
    }
    assert pod(children)["terminationGracePeriodSeconds"] == 90


@pytest.mark.parametrize("lease_s", [5, 3600])
def test_the_bridge_waits_for_an_absent_controller_longer_than_the_lease_can_last(lease_s: int) -> None:
    children = built(worker=worker_manifest(leases={"durationSeconds": lease_s}))
    connector = json.loads(environment(bridge(children))["HYPHA_BRIDGE_CONFIG"])["connector"]
    runs_out_s, granted_once_more_s = lease_s + LEASE_GRACE_S, lease_s
    assert connector["deadline_s"] >= runs_out_s + granted_once_more_s


def test_only_the_bridge_has_a_token_and_the_complete_volume() -> None:
    children = built()
    assert mounts(bridge(children)) == {
        "/job": ("job", None),
        "/etc/hypha/job": ("spec", None),
        "/var/run/hypha/token": ("token", None),
        "/tmp": ("tmp", None),
    }
    assert mounts(executor(children)) == {
        "/job/work": ("job", "work"),
        "/tmp": ("job", "work/tmp"),
        "/etc/hypha/job": ("spec", None),
        "/dev/shm": ("shm", None),
    }
    volumes = {volume["name"]: volume for volume in pod(children)["volumes"]}
    token = volumes["token"]["projected"]["sources"][0]["serviceAccountToken"]
    assert token == {"audience": "hypha-connector", "expirationSeconds": 3600, "path": "token"}


def test_a_pod_mounts_only_the_job_file_of_its_secret():
    volume = next(volume for volume in pod(built())["volumes"] if volume["name"] == "spec")
    assert volume["secret"]["items"] == [{"key": "job.json", "path": "job.json"}]


def test_a_trainer_is_launched_by_accelerate_with_the_settings_of_the_worker() -> None:
    worker = worker_manifest(
        executor={"accelerate": {"mixedPrecision": "bf16"}, "trustRemoteCode": True, "args": ["--output-dir", "/keep"]}
    )
    container = executor(built(worker=worker))
    launch = (
        "python -m hypha_trainer.launch --num_machines 1 --num_processes 1 --mixed_precision bf16 --dynamo_backend no"
    )
    assert container["command"] == [*launch.split(), "-m", "hypha_trainer"]
    assert container["args"] == [
        *("--socket", "/job/work/bridge.sock", "--work-dir", "/job/work"),
        *("--job-file", "/etc/hypha/job/job.json", "--trust-remote-code", "--output-dir", "/keep"),
    ]
    assert container["image"] == "trainer:1"


def test_each_device_has_a_process_and_the_processes_share_the_cores() -> None:
    container = executor(built(resources=LEASE | {"cpu": 9.0, "gpu": 200.0}))
    command = " ".join(container["command"])
    assert "--num_processes 4 " in command
    assert "--multi_gpu" in command
    assert environment(container)["OMP_NUM_THREADS"] == "2"


def test_a_parameter_server_is_started_by_its_module() -> None:
    container = executor(built(executor=AGGREGATE))
    assert container["command"] == ["python", "-m", "hypha_parameter_server"]
    assert container["image"] == "parameter-server:1"


def test_placeholders_of_a_custom_command_are_replaced() -> None:
    worker = worker_manifest(
        executor={
            "image": "mine:1",
            "command": ["train", "{SOCKET_PATH}"],
            "args": ["--dir={WORK_DIR}", "{JOB_FILE}", "{JOB_JSON}"],
            "env": {"A": "$(HOME)", "HOME": "/elsewhere", "WORK_DIR": "/forged"},
        }
    )
    container = executor(built(worker=worker))
    assert container["command"] == ["train", "/job/work/bridge.sock"]
    assert container["args"] == ["--dir=/job/work", "/etc/hypha/job/job.json", "{JOB_JSON}"]
    assert container["image"] == "mine:1"
    variables = environment(container)
    assert variables["A"] == "$$(HOME)", "what looks like a reference to a variable means itself"
    assert variables["HOME"] == "/elsewhere"
    assert variables["WORK_DIR"] == "/job/work"


def test_the_executor_writes_nowhere_but_in_the_job_s_storage() -> None:
    variables = environment(executor(built()))
    for name in ("HOME", "TMPDIR", "HF_HOME", "WORK_DIR"):
        assert variables[name].startswith("/job/work")


def test_queue_runtime_class_and_pull_secrets_pass_through() -> None:
    worker = worker_manifest(
        executor={"queueName": "gpu-queue", "runtimeClassName": "gvisor"}, imagePullSecrets=["registry"]
    )
    children = built(worker=worker)
    assert children["Job"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu-queue"
    assert children["Job"]["spec"]["suspend"] is True
    assert pod(children)["runtimeClassName"] == "gvisor"
    assert pod(children)["imagePullSecrets"] == [{"name": "registry"}]


def test_a_job_whose_executor_was_removed_is_refused_with_a_remedy() -> None:
    with pytest.raises(UnbuildableJobError, match=r"no longer has the executor train/other\. Add it"):
        built(executor={"class": "train", "name": "other"})


def test_a_lease_of_removed_gpus_is_refused_with_a_remedy() -> None:
    worker = worker_manifest(resources=ROOM)
    with pytest.raises(UnbuildableJobError, match=r"no longer has GPUs .* Set spec\.resources\.gpu"):
        built(worker=worker, job=hypha_job(resources=LEASE | {"gpu": 1.0}))


def test_a_template_that_weakens_the_pod_is_refused() -> None:
    with pytest.raises(OverlayError, match=r"template\.spec\.hostNetwork"):
        built(worker=worker_manifest(executor={"template": {"spec": {"hostNetwork": True}}}))


@pytest.mark.parametrize("identity", [{"issuerRef": {"name": "ca"}}, {"secretName": "x", "trustSecretName": "ca"}])
def test_no_template_mounts_a_secret_with_the_identity_of_the_worker(identity: dict[str, Any]) -> None:
    secret = "gpu-worker-identity" if "issuerRef" in identity else "ca"
    template = {"spec": {"volumes": [{"name": "x", "secret": {"secretName": secret}}]}}
    worker = worker_manifest(executor={"template": template, "allowPrivilegedTemplate": True}, identity=identity)
    with pytest.raises(OverlayError, match="identity"):
        built(worker=worker)


def egress(children: dict[str, dict[str, Any]], address: str) -> bool:
    """Whether the policy lets a pod connect to an address outside the cluster, port 443."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped  # the kernel connects over IPv4
    blocks = [
        to["ipBlock"]
        for rule in children["NetworkPolicy"]["spec"]["egress"]
        if {"protocol": "TCP", "port": 53} not in rule["ports"]
        for to in rule["to"]
        if "ipBlock" in to
    ]
    return any(
        parsed in ipaddress.ip_network(block["cidr"])
        and not any(parsed in ipaddress.ip_network(excepted) for excepted in block.get("except", []))
        for block in blocks
    )


@pytest.mark.parametrize("address", SPECIAL)
def test_a_job_reaches_no_special_address_unless_allowed(address: str) -> None:
    assert not egress(built(), address)
    assert egress(built(worker=worker_manifest(jobs={"allowPrivateAddresses": True})), address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_job_reaches_public_addresses_unless_the_owner_excludes_them(address: str) -> None:
    assert egress(built(), address)
    for excluded in (["0.0.0.0/0", "::/0"], ["0.0.0.0/1", "128.0.0.0/1", "2000::/4", "64:ff9b::/96"]):
        for private in (False, True):
            jobs = {"excludeCidr": excluded, "allowPrivateAddresses": private}
            assert not egress(built(worker=worker_manifest(jobs=jobs)), address)


def test_the_bridge_knows_the_excluded_networks_of_its_policy() -> None:
    children = built(worker=worker_manifest(jobs={"excludeCidr": ["44.0.0.0/8"]}))
    config = json.loads(environment(bridge(children))["HYPHA_BRIDGE_CONFIG"])
    assert config["exclude_cidr"] == ["44.0.0.0/8"]
    assert not egress(children, "44.1.2.3")


def test_every_excepted_network_lies_strictly_within_its_block() -> None:
    """The API server refuses a policy otherwise."""
    excluded = ["0.0.0.0/1", "2000::/2", "2001:db8::/33", "64:ff9b::/95", "10.0.0.1/32"]
    for to in built(worker=worker_manifest(jobs={"excludeCidr": excluded}))["NetworkPolicy"]["spec"]["egress"][-1][
        "to"
    ]:
        block = to["ipBlock"]
        for excepted in map(ipaddress.ip_network, block.get("except", [])):
            assert excepted.subnet_of(ipaddress.ip_network(block["cidr"]))
            assert str(excepted) != block["cidr"]


def test_nothing_reaches_a_job_and_it_reaches_its_own_connector() -> None:
    policy = built()["NetworkPolicy"]["spec"]
    assert policy["ingress"] == []
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    names, connector, _ = policy["egress"]
    assert {(p["protocol"], p["port"]) for p in names["ports"]} == {("UDP", 53), ("TCP", 53)}
    assert connector["ports"] == [{"protocol": "TCP", "port": 8443}]
    assert connector["to"] == [
        {"podSelector": {"matchLabels": {"hypha.space/worker": WORKER, "app.kubernetes.io/component": "controller"}}}
    ]


WORKERS = {
    "plain": worker_manifest(),
    "queued": worker_manifest(executor={"queueName": "q"}),
    "overlaid": worker_manifest(
        executor={
            "template": {
                "metadata": {"labels": {"env": "prod"}},
                "spec": {
                    "tolerations": [{"key": "gpu", "operator": "Exists"}],
                    "containers": [
                        {"name": "executor", "volumeMounts": [{"name": "models", "mountPath": "/models"}]},
                        {"name": "logs", "image": "x", "resources": {"limits": {"memory": "1Gi"}}},
                    ],
                    "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
                },
            }
        }
    ),
    "claims": worker_manifest(resources=ROOM | {"gpu": GPU | {"deviceClassName": "gpu.nvidia.com"}}),
}


@pytest.mark.parametrize("worker", WORKERS.values(), ids=WORKERS)
def test_the_api_server_accepts_the_children_and_a_restricted_namespace_the_pod(
    api_server: ApiServer, worker: dict[str, Any]
) -> None:
    namespace = api_server.namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})
    api_server.token(namespace, f"{WORKER}-job")
    children = built(hypha_job(namespace, resources=LEASE | {"gpu": 60.0}), worker)
    for child in children.values():
        api_server.kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=json.dumps(child))
    template = children["Job"]["spec"]["template"]
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "job", "namespace": namespace}, **template}
    body["metadata"] = {"name": "job", "namespace": namespace, "labels": template["metadata"]["labels"]}
    warned = api_server.kubectl("create", "--dry-run=server", "-o", "name", "-f", "-", stdin=json.dumps(body))
    assert warned.strip() == "pod/job"
