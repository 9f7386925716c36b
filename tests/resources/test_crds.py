"""What the real API server takes, refuses (and with what words), and leaves as it was written."""

import copy
import re
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
import yaml

from hypha_resources.job import HyphaJobSpec
from support.api_server import ApiServer
from support.resources import GATEWAY, PEER, job_manifest, worker_manifest

EXECUTOR = {"class": "train", "name": "diloco-transformer"}
FIXED = re.compile("never changes?: a HyphaJob is one task under one lease")
LISTEN = "/ip4/0.0.0.0/tcp/4001"
LISTEN_QUIC = "/ip4/0.0.0.0/udp/4001/quic-v1"


def network(**fields: Any) -> dict[str, Any]:
    return {"network": {"gateways": [GATEWAY], **fields}}


def resources(**fields: Any) -> dict[str, Any]:
    return {"resources": {"cpu": "4", "memory": "8Gi", "storage": "10Gi", **fields}}


def gpu(**fields: Any) -> dict[str, Any]:
    return resources(gpu={"count": 1, "memory": "48Gi", **fields})


def issued(**fields: Any) -> dict[str, Any]:
    return {"identity": {"issuerRef": {"name": "ca"}, **fields}}


def test_the_api_server_establishes_the_definitions_without_warnings(objects, api_server: ApiServer):
    with api_server.client() as client:
        listed = client.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").json()["items"]
    ours = [item for item in listed if item["spec"]["group"] == "hypha.space"]
    conditions = [{c["type"]: c["status"] for c in item["status"]["conditions"]} for item in ours]
    assert len(ours) == 2
    assert all(c["Established"] == c["NamesAccepted"] == "True" for c in conditions)
    assert not any("NonStructuralSchema" in c for c in conditions)


def fp8(**executor: Any) -> dict[str, Any]:
    return {"executors": [{**EXECUTOR, "accelerate": {"mixed_precision": "fp8"}, **executor}]}


def test_a_precision_without_a_library_in_the_default_image_is_refused_with_the_remedy(objects, namespace):
    refused = objects.apply(worker_manifest(namespace, **fp8()))
    assert "has no library for fp8; set image to one with torchao" in refused["message"]
    assert "spec" in objects.apply(worker_manifest(namespace, **fp8(image="example.org/trainer:fp8")))


def trainer(**executor: Any) -> dict[str, Any]:
    return {"executors": [{**EXECUTOR, **executor}]}


def accelerate(**config: Any) -> dict[str, Any]:
    return trainer(accelerate=config)


WRITTEN_BY_ACCELERATE_CONFIG = """
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: FSDP
downcast_bf16: 'no'
enable_cpu_affinity: false
fsdp_config:
  fsdp_activation_checkpointing: true
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_cpu_ram_efficient_loading: true
  fsdp_offload_params: false
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: SHARDED_STATE_DICT
  fsdp_version: 2
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: 4
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
"""


def test_a_file_of_accelerate_stays_exactly_as_it_was_written(objects, namespace):
    config = yaml.safe_load(WRITTEN_BY_ACCELERATE_CONFIG)
    applied = objects.apply(worker_manifest(namespace, **accelerate(**config)))
    assert applied["spec"]["executors"][0]["accelerate"] == config


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"distributed_type": "DEEPSPEED"}, "supports neither DeepSpeed nor Megatron-LM nor TPUs"),
        ({"distributed_type": "XLA"}, "set distributed_type to NO, MULTI_GPU or FSDP"),
        ({"tpu_use_cluster": True}, "does not support TPUs"),
        ({"num_machines": 2}, "the trainer runs on one machine; set num_machines: 1"),
        ({"machine_rank": 1}, "the trainer runs on one machine"),
        ({"compute_environment": "AMAZON_SAGEMAKER"}, "set compute_environment: LOCAL_MACHINE"),
        ({"distributed_type": "FSDP"}, "the trainer shards by FSDP 2; set fsdp_config.fsdp_version: 2"),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 1}}, "set fsdp_config.fsdp_version: 2"),
        ({"gpu_ids": "0,1"}, "Kubernetes chooses the devices of a job"),
        ({"parallelism_config": {"parallelism_config_cp_size": 2}}, "set parallelism_config_tp_size alone"),
        (
            {
                "distributed_type": "FSDP",
                "fsdp_config": {"fsdp_version": 2},
                "parallelism_config": {"parallelism_config_tp_size": 2},
            },
            "either shards or runs tensor parallel",
        ),
        ({"deepspeed_config": {"gradient_clipping": 0}}, "gradient_clipping"),
        ({"fsdp_config": {"fsdp_verion": 2}}, "fsdp_verion: field not declared in schema"),
        ({"mixed_precision": "fp4"}, "Unsupported value"),
        ({"dynamo_config": {"dynamo_backend": "INDUCTER"}}, "write one of NO, EAGER, AOT_EAGER, INDUCTOR"),
        ({"dynamo_config": {"dynamo_mode": "fast"}}, "Unsupported value"),
        ({"fsdp_config": {"fsdp_auto_wrap_policy": "TRANSFORMER"}}, "write one of TRANSFORMER_BASED_WRAP"),
        ({"fsdp_config": {"fsdp_state_dict_type": "LOCAL_STATE_DICT"}}, "write one of SHARDED_STATE_DICT"),
        ({"fsdp_config": {"fsdp_backward_prefetch": "BOTH"}}, "write one of BACKWARD_PRE, BACKWARD_POST, NO_PREFETCH"),
        (
            {"fsdp_config": {"fsdp_activation_checkpointing_offload": True}},
            "fsdp_activation_checkpointing_offload needs fsdp_activation_checkpointing: true",
        ),
    ],
)
def test_what_the_trainer_cannot_run_is_refused_when_it_is_applied(objects, namespace, config, reason):
    assert reason in objects.apply(worker_manifest(namespace, **accelerate(**config)))["message"]


@pytest.mark.parametrize("word", ["INDUCTOR", "inductor"])
def test_a_compiler_that_the_default_image_lacks_is_refused_with_the_remedy(objects, namespace, word):
    config = {"dynamo_config": {"dynamo_backend": word}}
    refused = objects.apply(worker_manifest(namespace, **accelerate(**config)))
    assert "has no C compiler for INDUCTOR; set image to one with gcc" in refused["message"]
    image = trainer(accelerate=config, image="example.org/trainer:gcc")
    assert "spec" in objects.apply(worker_manifest(namespace, **image))


@pytest.mark.parametrize("where", ["command", "args"])
def test_the_job_in_a_command_line_is_refused_with_the_remedy(objects, namespace, where):
    refused = objects.apply(worker_manifest(namespace, **trainer(**{where: ["--job", "{JOB_JSON}"]})))
    assert f"spec.executors[0].{where}[1]" in refused["message"]
    assert "write {JOB_FILE}, the path of a file with the same JSON" in refused["message"]
    shell = trainer(command=["sh", "-c", 'exec train --job "$(cat {JOB_FILE})"'])
    assert "spec" in objects.apply(worker_manifest(namespace, **shell))


def test_a_worker_stays_exactly_as_it_was_written(objects, namespace):
    manifest = worker_manifest(
        namespace,
        **resources(cpu="1000m", memory=8_000_000_000),
        offer={"price": 100, "floor": 80},
        telemetry={"endpoint": "http://otel:4318"},
    )
    first = objects.apply(copy.deepcopy(manifest))
    assert first["spec"] == manifest["spec"]
    again = objects.apply(manifest)
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert again["metadata"]["managedFields"] == first["metadata"]["managedFields"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"identity": {}}, "set secretName"),
        (issued(), "issuerRef needs trustSecretName"),
        (issued(trustSecretName="network", secretName="UPPER"), "spec.identity.secretName"),
        (network(gateways=[]), "spec.network.gateways"),
        ({"jobs": {"ttlSecondsAfterFinished": 2**31}}, "spec.jobs.ttlSecondsAfterFinished"),
        (network(gateways=["gateway:4001"]), "spec.network.gateways[0]"),
        (network(gateways=["/dns4/gateway.example.org:4001"]), "write /dns4/host.example.org/tcp/4001"),
        (network(gateways=["/ip4/1.2.3/tcp/4001"]), "spec.network.gateways[0]"),
        (network(gateways=["/ip4/fe80::1/tcp/4001"]), "spec.network.gateways[0]"),
        (network(gateways=[f"{GATEWAY}/p2p/me"]), "spec.network.gateways[0]"),
        (network(gateways=["/dns4/gateway.example.org/tcp/70000"]), "spec.network.gateways[0]"),
        (network(gateways=["/dnsaddr/gateway.example.org/tcp/4001"]), "or /dnsaddr/gateway.example.org"),
        (network(externalAddresses=["/dnsaddr/gateway.example.org"]), "spec.network.externalAddresses[0]"),
        (network(externalAddresses=[f"{GATEWAY}/p2p-circuit"]), "spec.network.externalAddresses[0]"),
        (network(listenAddresses=["/ip4/0.0.0.0/tcp/0"]), "spec.network.listenAddresses[0]"),
        (network(listenAddresses=["/ip4/0.0.0.0/tcp/70000"]), "spec.network.listenAddresses[0]"),
        (network(listenAddresses=["/ip4/0.0.0.0/tcp/8443"]), "not TCP port 8443, where jobs reach the worker"),
        (network(listenAddresses=["/ip6/::/udp/0/quic-v1"]), "spec.network.listenAddresses[0]"),
        (network(listenAddresses=[LISTEN, "/ip4/0.0.0.0/udp/4001"]), "spec.network.listenAddresses[1]"),
        (network(listenAddresses=["/dns4/a.b/udp/4001/quic-v1"]), "/ip6/::/udp/4001/quic-v1"),
        (network(listenAddresses=[]), "spec.network.listenAddresses"),
        (network(excludeCidr=["10.0.0.0"]), "spec.network.excludeCidr[0]"),
        (network(excludeCidr=["10.0.0/8"]), "write a network as 10.0.0.0/8"),
        (network(excludeCidr=["10.0.0.0/33"]), "spec.network.excludeCidr[0]"),
        ({"selection": {"schedulers": {"alice": 2}}}, "write peer ids before the weights"),
        (network(expose={"type": "Ingress"}), "Unsupported value"),
        (network(expose={"type": "NodePort", "port": 70000}), "spec.network.expose.port"),
        (network(expose={"type": "NodePort", "loadBalancerClass": "a/b"}), "of type LoadBalancer alone"),
        (network(expose={"type": "HostPort", "annotations": {"a": "b"}}), "makes no Service"),
        (network(expose={"type": "HostPort", "externalTrafficPolicy": "Local"}), "makes no Service"),
        (network(expose={"type": "NodePort", "ipFamilyPolicy": "Both"}), "Unsupported value"),
        (network(expose={"type": "NodePort", "sourceRanges": ["10.0.0.0/8"]}), "sourceRanges are of Services"),
        (network(expose={"type": "LoadBalancer", "sourceRanges": ["10.0.0/8"]}), "write a network as 10.0.0.0/8"),
        (network(expose={"type": "LoadBalancer", "hosts": ["a.b"]}), "a load balancer has addresses of its own"),
        (network(expose={"type": "NodePort", "hosts": ["/ip4/1.2.3.4"]}), "write an IP address or a name"),
        (
            network(expose={"type": "HostPort"}, listenAddresses=[LISTEN, "/ip4/0.0.0.0/udp/4002/quic-v1"]),
            "the same port number in all listenAddresses",
        ),
        (network(relayCircuit=False), "nobody could reach this worker"),
        (resources(cpu="0"), "must be more than zero"),
        (resources(cpu=0), "must be more than zero"),
        (resources(memory="-1Gi"), "spec.resources.memory"),
        (resources(storage="a lot"), "spec.resources.storage"),
        (gpu(memory="0Gi"), "must be more than zero"),
        (gpu(count=0), "spec.resources.gpu.count"),
        (gpu(resourceName="gpu"), "spec.resources.gpu.resourceName"),
        (gpu(resourceName="nvidia.com/gpu", deviceClassName="gpu.nvidia.com"), "set resourceName (a device plugin) or"),
        (gpu(selectors=[{"cel": {"expression": "true"}}]), "set deviceClassName"),
        (gpu(deviceClassName="gpu.nvidia.com", selectors=[{"cel": {}}]), "spec.resources.gpu.selectors[0].cel"),
        ({"offer": {"price": 50, "floor": 80}}, "floor is above price"),
        ({"offer": {"floor": 150}}, "floor is above price"),
        ({"offer": {"price": -1}}, "spec.offer.price"),
        ({"selection": {"strategy": "greed"}}, "Unsupported value"),
        ({"leases": {"durationSeconds": 1}}, "spec.leases.durationSeconds"),
        ({"leases": {"durationSeconds": 86400}}, "spec.leases.durationSeconds"),
        ({"jobs": {"terminationGraceSeconds": 0}}, "spec.jobs.terminationGraceSeconds"),
        ({"executors": []}, "spec.executors"),
        ({"executors": [EXECUTOR, EXECUTOR]}, "duplicate entries for key"),
        ({"executors": [{"class": "infer", "name": "x"}]}, "Unsupported value"),
        ({"executors": [{**EXECUTOR, "labels": {"kueue.x-k8s.io/queue-name": "q"}}]}, "name the queue in queueName"),
        ({"executors": [{**EXECUTOR, "labels": {"a": "b c"}}]}, "spec.executors[0].labels.a"),
        ({"executors": [{**EXECUTOR, "labels": {"a b": "c"}}]}, "write keys as name"),
        ({"executors": [{**EXECUTOR, "annotations": {"A/b": "c"}}]}, "write keys as name"),
        ({"jobs": {"queueTimeoutSeconds": 9}}, "spec.jobs.queueTimeoutSeconds"),
        ({"executors": [{"name": "x"}]}, "spec.executors[0].class: Required value"),
        ({"telemetry": {"endpoint": "otel:4317"}}, "spec.telemetry.endpoint"),
        ({"telemetry": {"endpoint": "http://otel", "sampleRatio": 2}}, "spec.telemetry.sampleRatio"),
        ({"resorces": {}}, "field not declared in schema"),
        ({"commonLabels": {"hypha.space/worker": "a"}}, "the operator and Kubernetes set some of these keys"),
        ({"commonLabels": {"app.kubernetes.io/name": "a"}}, "the operator and Kubernetes set some of these keys"),
        ({"commonAnnotations": {"job-name": "a"}}, "the operator and Kubernetes set some of these keys"),
        ({"commonLabels": {"a b": "c"}}, "write keys such as team"),
        ({"commonLabels": {"team": "a b"}}, "write values of at most 63 letters"),
        ({"jobs": {"disruption": "Never"}}, "Unsupported value"),
        ({"jobs": {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0/8"}}]}]}}, "write a network as 10.0.0.0/8"),
        ({"jobs": {"egress": [{"to": []}]}}, "spec.jobs.egress[0].to"),
        ({"jobs": {"egress": [{"to": [{}]}]}}, "write ipBlock, or namespaceSelector and podSelector"),
        (
            {"jobs": {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]}},
            "write ipBlock, or namespaceSelector and podSelector",
        ),
        ({"jobs": {"egress": [{"to": [{"podSelector": {}}], "ports": [{"port": 0}]}]}}, "spec.jobs.egress[0].ports[0]"),
        (
            {"jobs": {"egress": [{"to": [{"podSelector": {}}], "ports": [{"port": 443, "endPort": 80}]}]}},
            "endPort must not be less than port",
        ),
        ({"jobs": {"cache": {"claim": "models", "maxBytes": "500m"}}}, "maxBytes must be at least 1"),
        ({"jobs": {"proxy": {"https": "proxy:3128"}}}, "spec.jobs.proxy.https"),
        ({"jobs": {"proxy": {"https": "http://me:password@proxy:3128"}}}, "spec.jobs.proxy.https"),
        ({"jobs": {"trustBundle": {}}}, "spec.jobs.trustBundle.name"),
        ({"jobs": {"storage": {"storageClassName": "UPPER"}}}, "spec.jobs.storage.storageClassName"),
        ({"jobs": {"bridgeResources": {"limits": {"cpu": "0"}}}}, "must be more than zero"),
    ],
)
def test_an_invalid_worker_is_refused_with_the_field_or_the_reason(objects, namespace, spec, message):
    answer = objects.apply(worker_manifest(namespace, **spec))
    assert answer.get("kind") == "Status"
    assert message in answer["message"]


@pytest.mark.parametrize(
    "spec",
    [
        issued(trustSecretName="network"),
        network(gateways=["/dnsaddr/gateway.example.org", f"/dnsaddr/gateway.example.org/p2p/{PEER}"]),
        network(gateways=[f"{GATEWAY}/p2p/{PEER}"], relayCircuit=False, expose={"type": "LoadBalancer"}),
        network(expose={"type": "NodePort", "hosts": ["203.0.113.5", "2001:db8::5", "node-1.example.org"]}),
        network(
            expose={
                "type": "LoadBalancer",
                "ipFamilyPolicy": "PreferDualStack",
                "externalTrafficPolicy": "Local",
                "sourceRanges": ["203.0.113.0/24", "2001:db8::/32"],
            }
        ),
        network(expose={"type": "HostPort", "port": 4001}, listenAddresses=[LISTEN]),
        network(expose={"type": "HostPort"}, listenAddresses=[LISTEN, LISTEN_QUIC, "/ip6/::/udp/4001/quic-v1"]),
        network(listenAddresses=[LISTEN_QUIC]),
        network(listenAddresses=[LISTEN, "/ip4/0.0.0.0/udp/8443/quic-v1", "/ip6/::/udp/9464/quic-v1"]),
        network(expose={"type": "LoadBalancer", "loadBalancerClass": "service.k8s.aws/nlb", "annotations": {"a": "b"}}),
        network(gateways=["/ip6/2001:db8::1/tcp/4001", "/dns/g/tcp/65535"], excludeCidr=["10.0.0.1/8", "fc00::/7"]),
        network(
            listenAddresses=["/ip6/::/tcp/4001"], externalAddresses=[f"{GATEWAY}/p2p/{PEER}/p2p-circuit/p2p/{PEER}"]
        ),
        gpu(resourceName="nvidia.com/mig-1g.10gb", memory="10Gi", count=7),
        gpu(deviceClassName="gpu.nvidia.com", selectors=[{"cel": {"expression": "device.driver == 'gpu'"}}]),
        {"offer": {"price": 50}},
        {"offer": {"floor": 100}},
        {"offer": {"strategy": "flexible", "floor": 150}},
        {"offer": {"strategy": "flexible", "price": 50, "floor": 80}},
        {"selection": {"strategy": "affinity", "schedulers": {PEER: 2.5}, "executors": {"train": -1}}},
        {"executors": [{**EXECUTOR, "template": {"spec": {"tolerations": [{"operator": "Exists"}]}}}]},
        {"executors": [EXECUTOR, {"class": "inference", "name": "transformers"}]},
        {"executors": [{**EXECUTOR, "queueName": "q", "labels": {"kueue.x-k8s.io/priority-class": "low", "a": ""}}]},
        {"executors": [{**EXECUTOR, "annotations": {"team.example.org/cost": "any text: 42"}}]},
        {"suspend": True},
        {"commonLabels": {"app.kubernetes.io/part-of": "ml", "team": ""}, "commonAnnotations": {"a.b/c": "any text"}},
        {"jobs": {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}]}},
        {"jobs": {"egress": [{"to": [{"podSelector": {"matchLabels": {"a": "b"}}}], "ports": [{"port": 443}]}]}},
        {"jobs": {"proxy": {"https": "http://proxy:3128", "noProxy": [".internal", "10.0.0.0/8", "fd00::/8"]}}},
        {"jobs": {"egress": [{"to": [{"podSelector": {}}], "ports": [{"port": 443, "endPort": 443}]}]}},
        {"jobs": {"cache": {"claim": "models", "maxBytes": 1}}},
        {"jobs": {"cache": {"claim": "models", "maxBytes": "1000m"}}},
        {"jobs": {"trustBundle": {"name": "corporate"}}},
        {"jobs": {"disruption": "Allow", "storage": {"storageClassName": "fast"}}},
        {"jobs": {"bridgeResources": {"requests": {"cpu": "200m"}, "limits": {"cpu": 1}}}},
    ],
)
def test_a_valid_worker_is_accepted(objects, namespace, spec):
    assert objects.apply(worker_manifest(namespace, **spec)).get("kind") == "HyphaWorker"


@pytest.mark.parametrize("name", ["a" * 49, "1st", "a.b"])
def test_a_worker_with_a_name_that_no_service_can_have_is_refused(objects, namespace, name):
    answer = objects.apply(worker_manifest(namespace, name, identity={"secretName": "identity"}))
    assert "metadata.name: at most 48 characters" in answer["message"]


class TestHyphaJob:
    def test_the_controller_the_deadline_and_cancel_can_change(self, objects, namespace):
        job = job_manifest(namespace, worker_manifest(namespace), controller=str(uuid4()))
        objects.apply(copy.deepcopy(job))
        job["spec"]["controller"] = str(uuid4())
        job["spec"]["lease"]["deadline"] = "2036-01-01T00:01:00Z"
        job["spec"]["cancel"] = {"reason": "the lease lapsed"}
        changed = objects.apply(job)
        assert changed["spec"] == job["spec"]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("workerRef", {"name": "other", "uid": "1"}),
            ("workerPeerId", "12D3KooWother"),
            ("jobId", "00000000-0000-4000-8000-000000000000"),
            ("scheduler", "12D3KooWother"),
            ("executor", {"class": "aggregate", "name": "parameter-server"}),
            ("resources", {"cpu": 64}),
            ("config", {"executor": {"class": "train", "name": "another"}}),
            ("config", None),
            ("ttlSecondsAfterFinished", 1),
        ],
    )
    def test_the_other_fields_never_change(self, objects, namespace, field, value):
        job = job_manifest(namespace, worker_manifest(namespace))
        objects.apply(copy.deepcopy(job))
        job["spec"][field] = value
        if value is None:
            del job["spec"][field]
        answer = objects.apply(job)
        assert FIXED.search(answer["message"])

    @pytest.mark.parametrize(
        "change",
        [{"id": str(uuid4())}, {"price": 2}, {"price": None}, {"accepted": "2026-01-02T00:00:00Z"}, {"accepted": None}],
    )
    def test_a_lease_never_changes_apart_from_its_deadline(self, objects, namespace, change):
        lease = {"id": str(uuid4()), "deadline": "2036-01-01T00:00:00Z", "price": 1, "accepted": "2026-01-01T00:00:00Z"}
        job = job_manifest(namespace, worker_manifest(namespace), lease=lease)
        objects.apply(copy.deepcopy(job))
        changed = {key: value for key, value in {**lease, **change}.items() if value is not None}
        assert FIXED.search(objects.apply({**job, "spec": {**job["spec"], "lease": changed}})["message"])

    def test_a_cancellation_cannot_be_withdrawn(self, objects, namespace):
        job = job_manifest(namespace, worker_manifest(namespace), cancel={"reason": "the lease lapsed"})
        objects.apply(copy.deepcopy(job))
        del job["spec"]["cancel"]
        assert "cancel stays" in objects.apply(job)["message"]

    @pytest.mark.parametrize(
        "deadline",
        [
            "2036-01-01T00:00:00",
            "2036-01-01T00:00:00.5",
            "2036-01-01T00:00",
            "2036-01-01",
            "2036-01-01T00:00:00+24:00",
            "2036-13-01T00:00:00Z",
            "0000-01-01T00:00:00Z",
            "",
        ],
    )
    def test_a_deadline_that_is_not_a_time_is_refused(self, objects, namespace, deadline):
        lease = {"id": str(uuid4()), "deadline": deadline}
        answer = objects.apply(job_manifest(namespace, worker_manifest(namespace), lease=lease))
        assert "spec.lease.deadline" in answer["message"]

    @pytest.mark.parametrize(
        "deadline", ["2036-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999-23:59", "1000-01-01T00:00:00+23:59"]
    )
    def test_an_accepted_deadline_can_be_compared(self, objects, namespace, deadline):
        lease = {"id": str(uuid4()), "deadline": deadline}
        taken = objects.apply(job_manifest(namespace, worker_manifest(namespace), lease=lease))
        assert HyphaJobSpec.model_validate(taken["spec"]).lease.deadline - datetime.now(UTC)

    def test_a_job_is_named_after_its_task(self, objects, namespace):
        job = job_manifest(namespace, worker_manifest(namespace))
        job["metadata"]["name"] = "mine"
        assert "must be hypha-<spec.taskId>" in objects.apply(job)["message"]

    def test_node_and_operator_apply_their_own_conditions(self, objects, namespace):
        job = job_manifest(namespace, worker_manifest(namespace))
        objects.apply(copy.deepcopy(job))

        def status(type_: str) -> dict[str, Any]:
            condition = {
                "type": type_,
                "status": "True",
                "reason": "Because",
                "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
            identity = {key: job[key] for key in ("apiVersion", "kind", "metadata")}
            return {**identity, "status": {"conditions": [condition]}}

        objects.apply(status("Ready"), "hypha-operator", status=True)
        both = objects.apply(status("Reported"), "hypha-worker", status=True)
        assert {condition["type"] for condition in both["status"]["conditions"]} == {"Ready", "Reported"}


PROGRESS = {
    "round": 3,
    "batches": 480,
    "samplesPerSecond": 131.5,
    "roundsPerHour": 12.5,
    "totalBatches": 2000,
    "estimatedEnd": "2026-01-01T08:00:00Z",
    "metrics": {"loss": 0.25},
}


def test_kubectl_shows_the_columns(objects, namespace, api_server: ApiServer):
    worker = worker_manifest(namespace)
    objects.apply(copy.deepcopy(worker))
    job = job_manifest(namespace, worker)
    objects.apply(copy.deepcopy(job))
    job_status = {"phase": "Running", "progress": PROGRESS}
    objects.apply({**{k: job[k] for k in ("apiVersion", "kind", "metadata")}, "status": job_status}, status=True)
    node = {"connectedGateways": 1, "activeLeases": 2, "activeJobs": 2}
    worker_status = {"peerId": PEER, "node": node}
    objects.apply({**{k: worker[k] for k in ("apiVersion", "kind", "metadata")}, "status": worker_status}, status=True)
    workers = api_server.kubectl("get", "hw", "-n", namespace).splitlines()
    assert workers[0].split() == ["NAME", "READY", "PEER", "GATEWAYS", "LEASES", "JOBS", "AGE"]
    assert workers[1].split()[:5] == ["gpu", PEER, "1", "2", "2"]
    jobs = api_server.kubectl("get", "hj", "-n", namespace).splitlines()
    figures = ["ROUND", "LOSS", "SAMPLES/S", "ROUNDS/H"]
    assert jobs[0].split() == ["NAME", "WORKER", "EXECUTOR", "PHASE", *figures, "DURATION", "AGE"]
    assert jobs[1].split()[1:8] == ["gpu", "diloco-transformer", "Running", "3", "0.25", "131.5", "12.5"]
    wide = api_server.kubectl("get", "hj", "-n", namespace, "-o", "wide").splitlines()
    assert "2026-01-01T08:00:00Z" in wide[1]
    assert {"BATCHES", "TOTAL", "480", "2000"} <= {*wide[0].split(), *wide[1].split()}
    both = api_server.kubectl("get", "hypha", "-n", namespace, "-o", "name").split()
    assert [name.partition("/")[0] for name in both] == ["hyphajob.hypha.space", "hyphaworker.hypha.space"]


def test_people_wait_for_jobs_and_select_them_by_phase_and_worker(objects, namespace, api_server: ApiServer):
    job = job_manifest(namespace, worker_manifest(namespace))
    objects.apply(copy.deepcopy(job))
    now = "2026-01-01T00:00:00Z"
    complete = {"type": "Complete", "status": "True", "reason": "Completed", "message": "", "lastTransitionTime": now}
    job_status = {"phase": "Succeeded", "conditions": [complete]}
    objects.apply({**{k: job[k] for k in ("apiVersion", "kind", "metadata")}, "status": job_status}, status=True)
    name = f"hj/{job['metadata']['name']}"
    api_server.kubectl("wait", "-n", namespace, name, "--for=condition=Complete", "--timeout=10s")
    for phase, found in {"Succeeded": 1, "Running": 0}.items():
        selector = f"--field-selector=status.phase={phase},spec.workerRef.name=gpu"
        assert len(api_server.kubectl("get", "hj", "-n", namespace, selector, "-o", "name").split()) == found
