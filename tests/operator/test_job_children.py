"""The children of a HyphaJob: a Job with its pod, a NetworkPolicy, a claim for devices."""

import ipaddress
import json
from dataclasses import replace
from typing import Any

import pytest
import yaml

from hypha_contracts.addresses import is_reachable
from hypha_contracts.bridge_config import BridgeConfig
from hypha_contracts.names import TRACE_ANNOTATION
from hypha_contracts.times import LEASE_GRACE_S
from hypha_operator.jobs.children import job_children
from hypha_operator.pods.accelerate import ACCELERATE_ANNOTATION
from hypha_operator.pods.executor import UnbuildableJobError
from hypha_operator.pods.overlay import OverlayError
from hypha_resources.job import HyphaJobSpec
from hypha_resources.worker import HyphaWorkerSpec
from support.addresses import PUBLIC, SPECIAL
from support.api_server import ApiServer
from support.operating import SETTINGS
from support.operator_objects import AGGREGATE, GPU, INFERENCE, LEASE, PEER, ROOM, WORKER, hypha_job, worker_manifest
from support.pod_security import breaches_of_isolation, breaches_of_restricted

DRA = {"deviceClassName": "gpu.nvidia.com", "count": 4, "memory": "48Gi"}


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


def accelerate_configuration(children: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the content of the file that the pod's annotation becomes."""
    annotations = children["Job"]["spec"]["template"]["metadata"]["annotations"]
    content: dict[str, Any] = yaml.safe_load(annotations["hypha.space/accelerate"])
    return content


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


def test_openshift_may_choose_the_user_of_the_pod() -> None:
    job = hypha_job()
    spec, worker = HyphaJobSpec.model_validate(job["spec"]), HyphaWorkerSpec.model_validate(worker_manifest()["spec"])
    children = {child["kind"]: child for child in job_children(job, spec, worker, replace(SETTINGS, user_ids=False))}
    assert pod(children)["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert environment(executor(children))["USER"] == "hypha"


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
    worker = worker_manifest(resources=ROOM | {"gpu": DRA})
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


def test_only_devices_that_the_selectors_of_the_worker_choose_are_claimed() -> None:
    selectors = [{"cel": {"expression": "device.capacity['gpu.nvidia.com'].memory.isGreaterThan(quantity('40Gi'))"}}]
    worker = worker_manifest(resources=ROOM | {"gpu": DRA | {"selectors": selectors}})
    children = built(worker=worker, job=hypha_job(resources=LEASE | {"gpu": 60.0}))
    [request] = children["ResourceClaimTemplate"]["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"]["selectors"] == selectors


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
        "opened": [],
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
        "/etc/hypha/accelerate": ("accelerate", None),
        "/dev/shm": ("shm", None),
    }
    volumes = {volume["name"]: volume for volume in pod(children)["volumes"]}
    token = volumes["token"]["projected"]["sources"][0]["serviceAccountToken"]
    assert token == {"audience": "hypha-connector", "expirationSeconds": 3600, "path": "token"}


def test_a_storage_class_gives_each_job_a_volume_of_the_leases_size_and_takes_none_of_the_nodes_disk() -> None:
    children = built(worker=worker_manifest(jobs={"storage": {"storageClassName": "fast"}}))
    [volume] = [volume for volume in pod(children)["volumes"] if volume["name"] == "job"]
    assert volume["ephemeral"]["volumeClaimTemplate"]["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "100000000000"}},
    }
    assert "ephemeral-storage" not in executor(children)["resources"]["requests"]


def test_a_quota_on_limits_of_cpu_can_be_met() -> None:
    assert bridge(built())["resources"] == {
        "requests": {"cpu": "100m", "memory": "256Mi"},
        "limits": {"memory": "1Gi"},
    }
    more = {"requests": {"cpu": "200m"}, "limits": {"cpu": 1}}
    children = built(worker=worker_manifest(jobs={"bridgeResources": more}))
    assert bridge(children)["resources"] == {
        "requests": {"cpu": "200m", "memory": "256Mi"},
        "limits": {"cpu": "1", "memory": "1Gi"},
    }
    containers = [*pod(children)["containers"], *pod(children)["initContainers"]]
    assert all("cpu" in container["resources"]["limits"] for container in containers)


def test_no_mesh_changes_the_pod_and_nothing_ends_it_early() -> None:
    metadata = built(executor=AGGREGATE)["Job"]["spec"]["template"]["metadata"]
    assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
    assert metadata["labels"]["istio.io/dataplane-mode"] == "none"
    assert metadata["annotations"] == {
        "linkerd.io/inject": "disabled",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }


def test_disruptions_can_be_allowed() -> None:
    worker = worker_manifest(jobs={"disruption": "Allow"})
    metadata = built(worker=worker)["Job"]["spec"]["template"]["metadata"]
    del metadata["annotations"][ACCELERATE_ANNOTATION]
    assert metadata["annotations"] == {"linkerd.io/inject": "disabled"}


def test_proxies_and_authorities_reach_the_bridge_and_the_executor_gets_the_authorities_alone() -> None:
    jobs = {
        "proxy": {"http": "http://proxy:3128", "https": "http://proxy:3129", "noProxy": ["mirror.internal"]},
        "trustBundle": {"name": "corporate", "key": "bundle.pem"},
    }
    children = built(worker=worker_manifest(jobs=jobs))
    config = json.loads(environment(bridge(children))["HYPHA_BRIDGE_CONFIG"])
    assert config["proxy"] == {
        "http": "http://proxy:3128",
        "https": "http://proxy:3129",
        "no_proxy": ["mirror.internal"],
    }
    assert config["trust_pem"] == "/etc/hypha/trust/ca.crt"
    [volume] = [volume for volume in pod(children)["volumes"] if volume["name"] == "trust"]
    assert volume["configMap"] == {"name": "corporate", "items": [{"key": "bundle.pem", "path": "ca.crt"}]}
    for container in (bridge(children), executor(children)):
        assert mounts(container)["/etc/hypha/trust"] == ("trust", None)
    assert "proxy" not in json.dumps(executor(children)).lower()


def test_a_lent_token_reaches_the_bridge_alone() -> None:
    lent = {"secret": {"name": "hub", "key": "hf"}, "repositories": ["meta/llama"]}
    children = built(worker=worker_manifest(jobs={"hubToken": lent}))
    config = json.loads(environment(bridge(children))["HYPHA_BRIDGE_CONFIG"])
    assert config["hub_token"] == {"file": "/var/run/hypha/hub/token", "repositories": ["meta/llama"]}
    assert mounts(bridge(children))["/var/run/hypha/hub"] == ("hub-token", None)
    assert "hub-token" not in {name for name, _ in mounts(executor(children)).values()}
    [volume] = [volume for volume in pod(children)["volumes"] if volume["name"] == "hub-token"]
    items = [{"key": "hf", "path": "token"}]
    assert volume["secret"] == {"secretName": "hub", "items": items, "defaultMode": 0o440, "optional": True}


def test_the_template_of_an_executor_cannot_mount_the_lent_token() -> None:
    lent = {"secret": {"name": "hub"}, "repositories": ["meta/llama"]}
    mount = {"name": "hub-token", "mountPath": "/stolen"}
    template = {"spec": {"containers": [{"name": "executor", "volumeMounts": [mount]}]}}
    with pytest.raises(OverlayError, match="mounts hub-token, which belongs to the operator"):
        built(worker=worker_manifest(jobs={"hubToken": lent}, executor={"template": template}))


def test_the_cache_of_models_is_mounted_by_the_bridge_alone() -> None:
    worker = worker_manifest(jobs={"cache": {"claim": "models", "maxBytes": "1Gi"}})
    children = built(worker=worker)
    config = json.loads(environment(bridge(children))["HYPHA_BRIDGE_CONFIG"])
    assert config["cache"] == {"directory": "/cache", "max_bytes": 2**30}
    assert mounts(bridge(children))["/cache"] == ("cache", None)
    assert "cache" not in {name for name, _ in mounts(executor(children)).values()}
    [volume] = [volume for volume in pod(children)["volumes"] if volume["name"] == "cache"]
    assert volume["persistentVolumeClaim"] == {"claimName": "models"}
    assert "cache" not in {v["name"] for v in pod(built(executor=AGGREGATE, worker=worker))["volumes"]}


def test_the_template_of_an_executor_cannot_mount_the_cache() -> None:
    template = {"spec": {"containers": [{"name": "executor", "volumeMounts": [{"name": "cache", "mountPath": "/c"}]}]}}
    with pytest.raises(OverlayError, match="mounts cache, which belongs to the operator"):
        built(worker=worker_manifest(jobs={"cache": {"claim": "models"}}, executor={"template": template}))


def test_a_trainer_keeps_its_model_in_a_directory_of_its_own_of_the_claim() -> None:
    children = built(worker=worker_manifest(jobs={"outputClaim": "models"}))
    [volume] = [volume for volume in pod(children)["volumes"] if volume["name"] == "output"]
    assert volume["persistentVolumeClaim"] == {"claimName": "models"}
    assert mounts(executor(children))["/output"] == ("output", children["Job"]["metadata"]["name"])
    assert environment(executor(children))["OUTPUT_DIR"] == "/output"
    assert "/output" not in mounts(bridge(children))


def test_a_parameter_server_has_no_part_of_the_claim() -> None:
    children = built(executor=AGGREGATE, worker=worker_manifest(jobs={"outputClaim": "models"}))
    assert "output" not in {volume["name"] for volume in pod(children)["volumes"]}
    assert "OUTPUT_DIR" not in environment(executor(children))


def test_a_pod_mounts_only_the_job_file_of_its_secret():
    volume = next(volume for volume in pod(built())["volumes"] if volume["name"] == "spec")
    assert volume["secret"]["items"] == [{"key": "job.json", "path": "job.json"}]


def test_a_trainer_is_launched_by_accelerate_with_the_settings_of_the_worker() -> None:
    worker = worker_manifest(
        executor={"accelerate": {"mixed_precision": "bf16"}, "trustRemoteCode": True, "args": ["--output-dir", "/keep"]}
    )
    container = executor(built(worker=worker))
    launch = (
        "python -m hypha_executor.restart -m hypha_trainer.launch --config_file /etc/hypha/accelerate/accelerate.yaml"
    )
    assert container["command"] == [*launch.split(), "-m", "hypha_trainer"]
    assert container["args"] == [
        *("--socket", "/job/work/bridge.sock", "--work-dir", "/job/work"),
        *("--job-file", "/etc/hypha/job/job.json", "--trust-remote-code", "--output-dir", "/keep"),
    ]
    assert container["image"] == "trainer:1"


def test_each_device_has_a_process_and_the_processes_share_the_cores() -> None:
    children = built(resources=LEASE | {"cpu": 9.0, "gpu": 200.0})
    container = executor(children)
    configuration = accelerate_configuration(children)
    assert (configuration["num_processes"], configuration["distributed_type"]) == (4, "MULTI_GPU")
    assert environment(container)["OMP_NUM_THREADS"] == "2"
    assert environment(container)["LEASE_GPUS"] == "4"


def test_the_accelerate_configuration_is_a_file_that_the_executor_may_only_read() -> None:
    worker = worker_manifest(
        executor={"accelerate": {"mixed_precision": "bf16", "deepspeed_config": {"gradient_accumulation_steps": 4}}}
    )
    children = built(worker=worker)
    configuration = accelerate_configuration(children)
    assert configuration["mixed_precision"] == "bf16"
    assert configuration["deepspeed_config"] == {"gradient_accumulation_steps": 4}
    volume = next(volume for volume in pod(children)["volumes"] if volume["name"] == "accelerate")
    field = "metadata.annotations['hypha.space/accelerate']"
    assert volume["downwardAPI"]["items"] == [{"path": "accelerate.yaml", "fieldRef": {"fieldPath": field}}]
    mount = next(mount for mount in executor(children)["volumeMounts"] if mount["name"] == "accelerate")
    assert mount == {"name": "accelerate", "mountPath": "/etc/hypha/accelerate", "readOnly": True}
    assert "accelerate" not in {mount["name"] for mount in bridge(children)["volumeMounts"]}


def test_processes_on_cpus_share_the_cores_too() -> None:
    worker = worker_manifest(executor={"accelerate": {"num_processes": 2}})
    container = executor(built(worker=worker, resources=LEASE | {"cpu": 9.0}))
    assert environment(container)["OMP_NUM_THREADS"] == "4"


def test_only_trainers_have_an_accelerate_configuration() -> None:
    children = built(executor=AGGREGATE)
    assert "accelerate" not in {volume["name"] for volume in pod(children)["volumes"]}
    assert ACCELERATE_ANNOTATION not in children["Job"]["spec"]["template"]["metadata"]["annotations"]


def test_the_executor_of_a_lease_without_gpus_knows_that() -> None:
    worker = worker_manifest(executor={"env": {"LEASE_GPUS": "8"}})
    assert environment(executor(built(worker=worker)))["LEASE_GPUS"] == "0"


def test_a_parameter_server_is_started_by_its_module() -> None:
    container = executor(built(executor=AGGREGATE))
    assert container["command"] == ["python", "-m", "hypha_parameter_server"]
    assert container["image"] == "parameter-server:1"


def test_inference_runs_in_one_process_of_the_trainers_image_on_all_devices() -> None:
    worker = worker_manifest(
        executors=[INFERENCE | {"accelerate": {"mixed_precision": "bf16"}, "args": ["--output-dir", "/keep"]}]
    )
    children = built(worker=worker, executor=INFERENCE, resources=LEASE | {"cpu": 9.0, "gpu": 200.0})
    container = executor(children)
    assert container["command"] == ["python", "-m", "hypha_trainer.inference"]
    assert container["args"] == [
        *("--socket", "/job/work/bridge.sock", "--work-dir", "/job/work", "--job-file", "/etc/hypha/job/job.json"),
        *("--dtype", "bfloat16", "--output-dir", "/keep"),
    ]
    assert container["image"] == "trainer:1"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert environment(container)["OMP_NUM_THREADS"] == "9"


def test_models_that_bring_code_run_in_inference_only_if_the_worker_says_so() -> None:
    for trusted in (True, False):
        worker = worker_manifest(executors=[INFERENCE | {"trustRemoteCode": trusted}])
        assert ("--trust-remote-code" in executor(built(worker=worker, executor=INFERENCE))["args"]) == trusted


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


def test_a_job_for_a_queue_requests_only_what_queues_cover_and_its_volume_keeps_its_limit() -> None:
    job = hypha_job()
    children = built(job, worker_manifest(executor={"queueName": "q"}))
    assert "ephemeral-storage" not in executor(children)["resources"]["requests"]
    assert pod(children)["volumes"] == pod(built(job))["volumes"]


def test_labels_and_annotations_of_an_executor_are_those_of_its_job_beside_the_operator_s() -> None:
    own = {"kueue.x-k8s.io/priority-class": "low", "hypha.space/job": "forged"}
    hypha = hypha_job()
    worker = worker_manifest(executor={"labels": own, "annotations": {"team.example.org/cost": "42"}})
    job, plain = built(hypha, worker)["Job"], built(hypha)["Job"]
    assert job["metadata"]["labels"] == plain["metadata"]["labels"] | {"kueue.x-k8s.io/priority-class": "low"}
    assert job["metadata"]["annotations"] == {"team.example.org/cost": "42"}
    assert job["spec"]["template"]["metadata"] == plain["spec"]["template"]["metadata"]


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


def egress(children: dict[str, dict[str, Any]], address: str, port: int = 443) -> bool:
    """Whether the policy lets a pod connect to an address outside the cluster with TCP."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped  # the kernel connects over IPv4
    blocks = [
        to["ipBlock"]
        for rule in children["NetworkPolicy"]["spec"]["egress"]
        if {"protocol": "TCP", "port": 53} not in rule.get("ports", []) and leads_to(rule, port)
        for to in rule["to"]
        if "ipBlock" in to
    ]
    return any(
        parsed in ipaddress.ip_network(block["cidr"])
        and not any(parsed in ipaddress.ip_network(excepted) for excepted in block.get("except", []))
        for block in blocks
    )


def leads_to(rule: dict[str, Any], port: int) -> bool:
    return "ports" not in rule or any(
        item["protocol"] == "TCP" and item.get("port", port) <= port <= item.get("endPort", item.get("port", port))
        for item in rule["ports"]
    )


def bridge_reaches(children: dict[str, dict[str, Any]], address: str, port: int) -> bool:
    config = BridgeConfig.model_validate_json(environment(bridge(children))["HYPHA_BRIDGE_CONFIG"])
    return is_reachable(address, port, config.reachable)


EGRESS = [
    {
        "to": [{"ipBlock": {"cidr": "10.20.0.0/16", "except": ["10.20.9.0/24"]}}],
        "ports": [{"port": 443}, {"port": 8000, "endPort": 8010}, {"port": 9000, "protocol": "UDP"}],
    },
    {"to": [{"ipBlock": {"cidr": "fd00:20::/64"}}]},
    {"to": [{"ipBlock": {"cidr": "44.1.0.0/16"}}], "ports": [{"port": 443}]},
    {"to": [{"ipBlock": {"cidr": "10.30.0.0/16"}}], "ports": [{"port": 443, "protocol": "UDP"}]},
]


@pytest.mark.parametrize(
    ("address", "port", "reached"),
    [
        ("10.20.1.1", 443, True),
        ("10.20.1.1", 8010, True),
        ("10.20.1.1", 8011, False),
        ("10.20.1.1", 9000, False),
        ("10.20.9.1", 443, False),
        ("64:ff9b::a14:101", 443, True),  # 10.20.1.1 behind NAT64
        ("64:ff9b::a14:901", 443, False),  # 10.20.9.1
        ("fd00:20::1", 22, True),
        ("fd00:21::1", 22, False),
        ("44.1.2.3", 443, True),
        ("44.1.2.3", 80, False),
        ("44.2.0.1", 443, False),
        ("10.30.0.1", 443, False),
        ("8.8.8.8", 80, True),
    ],
)
def test_policy_and_bridge_agree_on_what_the_rules_of_the_worker_open(address: str, port: int, reached: bool) -> None:
    worker = worker_manifest(jobs={"egress": EGRESS, "excludeCidr": ["44.0.0.0/8"]})
    children = built(worker=worker)
    assert (egress(children, address, port), bridge_reaches(children, address, port)) == (reached, reached)


def test_rules_may_lead_to_pods() -> None:
    pods = {"namespaceSelector": {"matchLabels": {"name": "storage"}}, "podSelector": {}}
    children = built(worker=worker_manifest(jobs={"egress": [{"to": [pods], "ports": [{"port": 9000}]}]}))
    rule = children["NetworkPolicy"]["spec"]["egress"][-1]
    assert rule == {"to": [pods], "ports": [{"port": 9000, "protocol": "TCP"}]}


def test_a_rule_whose_exceptions_leave_nothing_opens_nothing() -> None:
    block = {"cidr": "10.20.0.0/16", "except": ["10.0.0.0/8"]}
    children = built(worker=worker_manifest(jobs={"egress": [{"to": [{"ipBlock": block}]}]}))
    assert all(rule.get("to") != [] for rule in children["NetworkPolicy"]["spec"]["egress"])
    assert not egress(children, "10.20.0.1")


def test_the_routes_to_configured_servers_are_open_as_far_as_they_are_not_anyway() -> None:
    routes = [
        {"to": [{"ipBlock": {"cidr": address}}], "ports": [{"protocol": "TCP", "port": 8443}]}
        for address in ("10.1.2.3/32", "8.8.8.8/32")
    ]
    job = hypha_job()
    children = {
        child["kind"]: child
        for child in job_children(
            job,
            HyphaJobSpec.model_validate(job["spec"]),
            HyphaWorkerSpec.model_validate(worker_manifest()["spec"]),
            SETTINGS,
            routes,
        )
    }
    assert egress(children, "10.1.2.3", 8443)
    assert not egress(children, "10.1.2.3", 443)
    assert children["NetworkPolicy"]["spec"]["egress"][-1] == routes[0]


def test_the_dns_of_openshift_is_reached_in_pods_alone() -> None:
    [rule] = [r for r in built()["NetworkPolicy"]["spec"]["egress"] if {"protocol": "UDP", "port": 5353} in r["ports"]]
    assert rule["to"] == [{"namespaceSelector": {}}]


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
    worker = worker_manifest(jobs={"excludeCidr": excluded, "egress": EGRESS})
    rules = built(worker=worker)["NetworkPolicy"]["spec"]["egress"]
    blocks = [to["ipBlock"] for rule in rules for to in rule.get("to", []) if "ipBlock" in to]
    assert len(blocks) > len(EGRESS)
    for block in blocks:
        for excepted in map(ipaddress.ip_network, block.get("except", [])):
            assert excepted.subnet_of(ipaddress.ip_network(block["cidr"]))
            assert str(excepted) != block["cidr"]


def test_nothing_reaches_a_job_and_it_reaches_its_own_connector() -> None:
    policy = built()["NetworkPolicy"]["spec"]
    assert policy["ingress"] == []
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    names, _, connector, _ = policy["egress"]
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
    "egress": worker_manifest(jobs={"egress": [*EGRESS, {"to": [{"podSelector": {}}]}]}),
    "trust": worker_manifest(jobs={"trustBundle": {"name": "corporate"}, "proxy": {"https": "http://proxy:3128"}}),
    "volume of a storage class": worker_manifest(jobs={"storage": {"storageClassName": "fast"}}),
    "claims": worker_manifest(
        resources=ROOM | {"gpu": DRA | {"selectors": [{"cel": {"expression": "device.driver == 'gpu.nvidia.com'"}}]}}
    ),
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


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (f"00-{'ab' * 16}-{'cd' * 8}-01", f"00-{'ab' * 16}-{'cd' * 8}-01"),
        ("00-$(HOME)-x-01", None),
        (None, None),
    ],
)
def test_bridge_and_executor_get_the_trace_context_of_their_hypha_job(
    annotation: str | None, expected: str | None
) -> None:
    job = hypha_job()
    job["metadata"]["annotations"] = {TRACE_ANNOTATION: annotation} if annotation else {}
    children = built(job)
    assert environment(executor(children)).get("TRACEPARENT") == expected
    assert environment(bridge(children)).get("TRACEPARENT") == expected
