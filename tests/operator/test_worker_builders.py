"""The children of a HyphaWorker, as the pure functions build them."""

import copy
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from hypha_contracts.names import CONFIG_ANNOTATION, reviewer_binding
from hypha_contracts.node_config import NodeConfig
from hypha_operator.pods.overlay import OverlayError
from hypha_operator.settings import Settings, SettingsError
from hypha_operator.workers.access import access, token_reviewer
from hypha_operator.workers.certificate import certificate
from hypha_operator.workers.controller import config_map, deployment
from hypha_operator.workers.network import external_addresses, network_policy, p2p_service, with_host_ip
from hypha_operator.workers.node_config import config_toml
from hypha_resources.worker import HyphaWorkerSpec
from hypha_worker.config_file import load
from support.resources import GATEWAY, PEER, worker_manifest

POD_NAME = {"fieldRef": {"fieldPath": "metadata.name"}}
SETTINGS = Settings("worker:1", "bridge:1", "trainer:1", "parameter-server:1")


def worker(**spec: Any) -> tuple[dict[str, Any], HyphaWorkerSpec]:
    manifest = worker_manifest("ns", **spec)
    manifest["metadata"]["uid"] = "uid-1"
    return manifest, HyphaWorkerSpec.model_validate(manifest["spec"])


def network(**fields: Any) -> dict[str, Any]:
    return {"gateways": [GATEWAY], **fields}


def configured(*, accept_offers: bool = True, peer_id: str | None = None, **spec: Any) -> dict[str, Any]:
    text = config_toml(*worker(**spec), external_addresses=[], accept_offers=accept_offers, peer_id=peer_id)
    return tomllib.loads(text)


def deployed(addresses: tuple[str, ...] = (), accept_offers: bool = True, **spec: Any) -> dict[str, Any]:
    return deployment(*worker(**spec), list(addresses), SETTINGS, accept_offers=accept_offers)


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["template"]["spec"]


def config_hash(manifest: dict[str, Any]) -> str:
    return manifest["spec"]["template"]["metadata"]["annotations"][CONFIG_ANNOTATION]


class TestConfiguration:
    @pytest.mark.parametrize(
        "spec",
        [
            {},
            {
                "network": network(
                    listenAddresses=["/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4002"],
                    externalAddresses=["/ip4/203.0.113.5/tcp/4001"],
                    excludeCidr=[],
                ),
                "selection": {"strategy": "affinity", "schedulers": {PEER: 2.5}, "executors": {"train/x": -1}},
                "telemetry": {"endpoint": "http://otel:4318", "attributes": {"worker.region": 'a "quoted" place'}},
                "leases": {"durationSeconds": 45},
                "resources": {"cpu": "500m", "memory": 10**10, "storage": "1Ti"},
            },
        ],
    )
    def test_the_node_accepts_the_configuration(self, spec):
        values = configured(peer_id=PEER, **spec)
        config = NodeConfig.model_validate(values, context={"directory": Path("/")})
        assert config.kubernetes is not None
        assert config.kubernetes.peer_id == PEER
        assert config.kubernetes.worker_uid == "uid-1"

    def test_the_configuration_has_the_settings_of_the_worker(self):
        values = configured(
            offer={"price": 7, "floor": 5, "strategy": "flexible"}, jobs={"readAhead": 3, "excludeCidr": ["44.0.0.0/8"]}
        )
        minimum = {"cpu": 1, "memory": 4, "storage": 20}
        assert values["offer"] == {"price": 7, "floor": 5, "strategy": "flexible", "minimum": minimum}
        assert values["resources"]["cpu"] == 32
        assert values["resources"]["gpu"] == pytest.approx(103.079215104)
        assert values["resources"]["gpu_device"] == pytest.approx(51.539607552)
        assert values["jobs"] == {
            "read_ahead": 3,
            "allow_private_addresses": False,
            "exclude_cidr": ["44.0.0.0/8"],
        }
        assert [executor["name"] for executor in values["executors"]] == ["diloco-transformer", "parameter-server"]
        assert {executor["runtime"] for executor in values["executors"]} == {"kubernetes"}

    def test_without_exclude_cidr_the_node_has_its_own_default(self):
        assert "exclude_cidr" not in configured()
        assert configured(network=network(excludeCidr=[]))["exclude_cidr"] == []

    def test_a_worker_that_accepts_no_offers_has_a_node_that_makes_none(self):
        assert configured(accept_offers=False)["kubernetes"]["accept_offers"] is False


class TestDeployment:
    def test_the_pod_is_restricted_and_mounts_only_what_the_node_reads(self):
        spec = pod(deployed())
        container = spec["containers"][0]
        assert spec["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"/etc/hypha/config", "/etc/hypha/identity", "/etc/hypha/trust", "/var/lib/hypha", "/tmp"}
        assert spec["enableServiceLinks"] is False

    def test_the_node_knows_its_pod_even_if_the_template_changes_the_hostname(self, tmp_path):
        more = {"name": "worker", "env": [{"name": "A", "value": "b"}]}
        template = {"spec": {"hostname": "worker", "containers": [more]}}
        container = pod(deployed(controller={"template": template}))["containers"][0]
        variables = [item["name"] for item in container["env"] if item.get("valueFrom") == POD_NAME]
        file = tmp_path / "worker.toml"
        file.write_text(config_toml(*worker(), external_addresses=[], accept_offers=True, peer_id=None))
        config = load(file, dict.fromkeys(variables, "gpu-controller-1-2")).config
        assert config.kubernetes is not None
        assert config.kubernetes.pod_name == "gpu-controller-1-2"

    def test_a_rollout_never_runs_two_controllers(self):
        manifest = deployed()
        assert manifest["spec"]["replicas"] == 1
        assert manifest["spec"]["strategy"]["type"] == "Recreate"

    @pytest.mark.parametrize(
        "changed",
        [
            {"offer": {"price": 1, "floor": 1}},
            {"network": network(relayCircuit=False)},
            {"executors": [{"class": "train", "name": "another"}]},
            {"identity": {"secretName": "gpu-identity", "allowPeerIdChange": True}},
        ],
    )
    def test_a_change_that_concerns_the_node_replaces_its_pod(self, changed):
        assert config_hash(deployed()) != config_hash(deployed(**changed))

    def test_a_change_that_concerns_only_jobs_or_the_operator_replaces_no_pod(self):
        executors = [
            {"class": "train", "name": "diloco-transformer", "image": "mine:2", "template": {"spec": {}}},
            {"class": "aggregate", "name": "parameter-server", "env": {"A": "b"}},
        ]
        assert config_hash(deployed()) == config_hash(deployed(executors=executors))

    def test_a_new_peer_id_replaces_no_pod_but_configures_the_next_one(self):
        first = config_map(*worker(), [], accept_offers=True, peer_id=None)
        later = config_map(*worker(), [], accept_offers=True, peer_id=PEER)
        assert PEER in later["data"]["worker.toml"]
        assert PEER not in first["data"]["worker.toml"]
        allowed = {"secretName": "i", "allowPeerIdChange": True}
        changing = config_map(*worker(identity=allowed), [], accept_offers=True, peer_id=PEER)
        assert PEER not in changing["data"]["worker.toml"]

    def test_the_authorities_may_be_in_another_secret_and_revocation_lists_are_optional(self):
        spec = pod(deployed(identity={"secretName": "mine", "trustSecretName": "network"}))
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert volumes["identity"]["secret"]["secretName"] == "mine"
        required, optional = (source["secret"] for source in volumes["trust"]["projected"]["sources"])
        assert (required["name"], required["items"][0]["key"]) == ("network", "ca.crt")
        assert (optional["optional"], optional["items"][0]["key"]) == (True, "crl.pem")

    def test_the_pod_leaves_a_lost_node_before_leases_expire_unless_a_template_sets_another_time(self):
        def patience(manifest: dict[str, Any]) -> dict[str, int]:
            return {item["key"]: item.get("tolerationSeconds") for item in pod(manifest)["tolerations"]}

        lost, starting = "node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"
        assert patience(deployed()) == {lost: 10, starting: 10}
        longer = {"key": lost, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}
        template = {"spec": {"tolerations": [longer, {"key": "gpu", "operator": "Exists"}]}}
        assert patience(deployed(controller={"template": template})) == {lost: 60, starting: 10, "gpu": None}

    def test_a_template_is_merged_by_key(self):
        template = {"spec": {"nodeSelector": {"zone": "a"}, "containers": [{"name": "worker", "image": "mine:1"}]}}
        spec = pod(deployed(controller={"template": template}))
        assert spec["nodeSelector"] == {"zone": "a"}
        assert spec["containers"][0]["image"] == "mine:1"
        assert spec["containers"][0]["command"][0] == "hypha-worker"

    @pytest.mark.parametrize("resources", [{"requests": {"cpu": "2"}}, {"limits": None}, {"limits": {"cpu": "2"}}])
    def test_resources_of_the_spec_replace_the_default_limits(self, resources):
        assert pod(deployed(controller={"resources": resources}))["containers"][0]["resources"] == resources

    @pytest.mark.parametrize(
        "weakening",
        [
            {"hostNetwork": True},
            {"containers": [{"name": "worker", "resources": {"limits": {"memory": None}}}]},
            {"containers": [{"name": "another", "image": "x"}]},
        ],
    )
    def test_a_template_that_weakens_the_controller_is_refused_without_mention_of_the_executors_option(self, weakening):
        with pytest.raises(OverlayError, match=r"(remove it|set one)$") as refused:
            deployed(controller={"template": {"spec": weakening}})
        assert "executor" not in str(refused.value)

    def test_building_does_not_modify_its_input(self):
        manifest, spec = worker()
        before = copy.deepcopy(manifest)
        deployment(manifest, spec, [], SETTINGS, accept_offers=True)
        access(manifest)
        assert manifest == before


class TestAddresses:
    def test_external_addresses_of_the_spec_take_precedence(self):
        _, spec = worker(network=network(externalAddresses=["/dns/w.example/tcp/1"], expose={"type": "NodePort"}))
        assert external_addresses(spec, None) == ["/dns/w.example/tcp/1"]

    def test_a_node_port_is_an_address_once_the_cluster_has_allocated_it(self):
        manifest, spec = worker(network=network(expose={"type": "NodePort"}))
        service = p2p_service(manifest, spec)
        assert external_addresses(spec, service) == []
        assert service is not None
        service["spec"]["ports"][0]["nodePort"] = 30401
        addresses = external_addresses(spec, service)
        assert with_host_ip(addresses, None) == []
        assert with_host_ip(addresses, "192.0.2.1") == ["/ip4/192.0.2.1/tcp/30401"]

    def test_a_load_balancer_is_an_address_by_ip_or_by_hostname(self):
        manifest, spec = worker(network=network(expose={"type": "LoadBalancer", "port": 443}))
        service = p2p_service(manifest, spec)
        assert service is not None
        ingress = [{"ip": "192.0.2.1"}, {"hostname": "lb.example"}, {"ip": "2001:db8::1"}]
        service["status"] = {"loadBalancer": {"ingress": ingress}}
        assert external_addresses(spec, service) == [
            "/ip4/192.0.2.1/tcp/443",
            "/dns/lb.example/tcp/443",
            "/ip6/2001:db8::1/tcp/443",
        ]
        assert service["spec"]["ports"][0]["targetPort"] == 4001

    def test_the_node_of_the_pod_completes_the_address_of_a_host_port(self):
        manifest, spec = worker(network=network(expose={"type": "HostPort", "port": 4100}))
        assert p2p_service(manifest, spec) is None
        addresses = external_addresses(spec, None)
        container = pod(deployment(manifest, spec, addresses, SETTINGS, accept_offers=True))["containers"][0]
        _, host_ip, told = container["env"]
        assert host_ip["valueFrom"] == {"fieldRef": {"fieldPath": "status.hostIP"}}
        assert json.loads(told["value"]) == ["/ip4/$(HOST_IP)/tcp/4100"]
        assert {"containerPort": 4001, "hostPort": 4100}.items() <= container["ports"][1].items()

    def test_the_host_ip_of_the_pod_does_not_replace_the_pod(self):
        exposed = {"network": network(expose={"type": "HostPort"})}
        _, spec = worker(**exposed)
        addresses = tuple(external_addresses(spec, None))
        assert "HOST_IP" not in str(config_map(*worker(**exposed), list(addresses), accept_offers=True, peer_id=None))


class TestAccess:
    def test_the_controller_has_the_permissions_it_needs_and_reads_no_secret(self):
        manifest, _ = worker()
        role = next(item for item in access(manifest) if item["kind"] == "Role")
        verbs = {(rule["apiGroups"][0], rule["resources"][0]): set(rule["verbs"]) for rule in role["rules"]}
        assert verbs["", "secrets"] == {"create"}
        assert verbs["hypha.space", "hyphajobs"] == {"get", "list", "watch", "create", "patch"}
        of_workers = [rule for rule in role["rules"] if "hyphaworkers" in rule["resources"][0]]
        assert all(rule["resourceNames"] == ["gpu"] for rule in of_workers)

    def test_the_service_account_of_jobs_has_no_token_and_no_permissions(self):
        manifest, _ = worker()
        accounts = {item["metadata"]["name"]: item for item in access(manifest) if item["kind"] == "ServiceAccount"}
        assert accounts["gpu-job"]["automountServiceAccountToken"] is False
        binding = next(item for item in access(manifest) if item["kind"] == "RoleBinding")
        assert [subject["name"] for subject in binding["subjects"]] == ["gpu-controller"]

    def test_the_reviewer_binding_names_the_worker_and_its_namespace(self):
        manifest, _ = worker()
        binding = token_reviewer(manifest, "reviewers")
        assert binding["metadata"]["name"] == "hypha-ns.gpu-token-reviewer"
        assert binding["roleRef"]["name"] == "reviewers"
        assert "ownerReferences" not in binding["metadata"]

    def test_different_workers_have_different_reviewer_bindings(self):
        assert reviewer_binding("a-b", "c") != reviewer_binding("a", "b-c")

    def test_only_jobs_of_this_worker_reach_the_connector(self):
        peers, jobs = network_policy(*worker())["spec"]["ingress"]
        assert peers == {"ports": [{"protocol": "TCP", "port": 4001}]}
        assert jobs["from"][0]["podSelector"]["matchLabels"]["hypha.space/worker"] == "gpu"
        assert jobs["ports"][0]["port"] == 8443


def test_a_renewed_certificate_keeps_its_key():
    identity = {"issuerRef": {"name": "ca", "kind": "ClusterIssuer"}, "trustSecretName": "network"}
    issued = certificate(*worker(identity=identity))
    assert issued is not None
    assert issued["spec"]["privateKey"] == {"algorithm": "Ed25519", "encoding": "PKCS8", "rotationPolicy": "Never"}
    assert issued["spec"]["secretName"] == "gpu-identity"
    assert issued["spec"]["dnsNames"]
    assert certificate(*worker()) is None


def test_a_missing_variable_of_the_settings_is_named_in_the_error():
    environ = {f"HYPHA_{part}_IMAGE": "x" for part in ("WORKER", "BRIDGE", "TRAINER")}
    with pytest.raises(SettingsError, match="HYPHA_PARAMETER_SERVER_IMAGE"):
        Settings.from_environment(environ)
