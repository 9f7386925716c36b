"""The children of a HyphaWorker, as the pure functions build them."""

import copy
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hypha_contracts.names import CONFIG_ANNOTATION
from hypha_contracts.node_config import NodeConfig
from hypha_operator.pods.overlay import OverlayError
from hypha_operator.settings import Settings, SettingsError
from hypha_operator.workers.access import access
from hypha_operator.workers.certificate import certificate
from hypha_operator.workers.controller import config_map, deployment
from hypha_operator.workers.network import (
    external_addresses,
    network_policy,
    p2p_service,
    status_service,
    with_host_ips,
)
from hypha_operator.workers.node_config import config_toml, node_config
from hypha_resources.worker import HyphaWorkerSpec
from hypha_worker.config_file import load
from hypha_worker.node import network_config
from support.resources import GATEWAY, PEER, worker_manifest

POD_NAME = {"fieldRef": {"fieldPath": "metadata.name"}}
SETTINGS = Settings("worker:1", "bridge:1", "trainer:1", "parameter-server:1")


def worker(**spec: Any) -> tuple[dict[str, Any], HyphaWorkerSpec]:
    manifest = worker_manifest("ns", **spec)
    manifest["metadata"]["uid"] = "uid-1"
    return manifest, HyphaWorkerSpec.model_validate(manifest["spec"])


def network(**fields: Any) -> dict[str, Any]:
    return {"gateways": [GATEWAY], **fields}


def configured(*, peer_id: str | None = None, **spec: Any) -> dict[str, Any]:
    return tomllib.loads(config_toml(node_config(*worker(**spec), addresses=[], peer_id=peer_id)))


def deployed(addresses: tuple[str, ...] = (), **spec: Any) -> dict[str, Any]:
    return deployment(*worker(**spec), list(addresses), SETTINGS)


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
            offer={"price": 7, "floor": 5, "strategy": "flexible", "aggregateNeedsReach": False},
            jobs={"readAhead": 3, "ttlSecondsAfterFinished": 5},
        )
        minimum = {"cpu": 1, "memory": 4, "storage": 20}
        terms = {"price": 7, "floor": 5, "aggregate_needs_reach": False}
        assert values["offer"] == {**terms, "strategy": "flexible", "minimum": minimum}
        assert values["resources"]["cpu"] == 32
        assert values["resources"]["gpu"] == pytest.approx(103.079215104)
        assert values["resources"]["gpu_device"] == pytest.approx(51.539607552)
        assert values["jobs"] == {"keep_ended_s": 5}, "the operator writes the others into the jobs' pods"
        assert [executor["name"] for executor in values["executors"]] == ["diloco-transformer", "parameter-server"]
        assert {executor["runtime"] for executor in values["executors"]} == {"kubernetes"}

    def test_without_exclude_cidr_the_node_has_its_own_default(self):
        assert "exclude_cidr" not in configured()
        assert configured(network=network(excludeCidr=[]))["exclude_cidr"] == []

    def test_nodes_and_the_most_of_one_job_count_gpus_as_memory(self):
        resources = {
            "cpu": "64",
            "memory": "256G",
            "storage": "1T",
            "gpu": {"count": 4, "memory": "80G"},
            "perJob": {"cpu": "8", "gpu": 1},
            "nodes": [{"count": 2, "cpu": "16", "memory": "64G", "storage": "250G", "gpu": 2}],
        }
        values = configured(resources=resources)["resources"]
        assert values["per_job"] == {"cpu": 8, "gpu": 80}
        assert values["nodes"] == [{"count": 2, "cpu": 16, "memory": 64, "storage": 250, "gpu": 160}]

    def test_the_file_has_what_the_node_offers_when_it_starts(self):
        values = configured(
            suspend=True,
            suspendDeadline="2030-01-31T08:00:00Z",
            schedulers={"block": [PEER]},
            jobs={"maxDurationSeconds": 60, "ttlSecondsAfterFinished": 5},
        )
        assert (values["suspend"], values["suspend_deadline"]) == (True, "2030-01-31T08:00:00Z")
        assert values["schedulers"]["block"] == [PEER]
        assert values["jobs"] == {"max_duration_s": 60, "keep_ended_s": 5}


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
        file.write_text(config_toml(node_config(*worker(), addresses=[], peer_id=None)))
        config = load(file, dict.fromkeys(variables, "gpu-controller-1-2")).config
        assert config.kubernetes is not None
        assert config.kubernetes.pod_name == "gpu-controller-1-2"

    def test_a_template_may_turn_on_the_status_page_of_the_node(self):
        page = {"name": "HYPHA_STATUS_PAGE__LISTEN", "value": "127.0.0.1:8081"}
        template = {"spec": {"containers": [{"name": "worker", "env": [page]}]}}
        assert page in pod(deployed(controller={"template": template}))["containers"][0]["env"]

    def test_a_mesh_leaves_the_pod_alone_unless_a_template_lets_it_in(self):
        metadata = deployed()["spec"]["template"]["metadata"]
        assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
        assert metadata["annotations"]["linkerd.io/inject"] == "disabled"
        template = {"metadata": {"labels": {"sidecar.istio.io/inject": "true"}}}
        changed = deployed(controller={"template": template})["spec"]["template"]["metadata"]
        assert changed["labels"]["sidecar.istio.io/inject"] == "true"

    def test_openshift_may_choose_the_user_of_the_pod(self):
        settings = replace(SETTINGS, user_ids=False)
        context = pod(deployment(*worker(), [], settings))["securityContext"]
        assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}

    def test_a_rollout_never_runs_two_controllers(self):
        manifest = deployed()
        assert manifest["spec"]["replicas"] == 1
        assert manifest["spec"]["strategy"]["type"] == "Recreate"

    @pytest.mark.parametrize(
        "changed",
        [
            {"network": network(relayCircuit=False)},
            {"executors": [{"class": "train", "name": "another"}]},
            {"identity": {"secretName": "gpu-identity", "allowPeerIdChange": True}},
        ],
    )
    def test_a_change_that_a_running_node_cannot_take_over_replaces_its_pod(self, changed):
        assert config_hash(deployed()) != config_hash(deployed(**changed))

    @pytest.mark.parametrize(
        "changed",
        [
            {"offer": {"price": 1, "floor": 1, "strategy": "flexible"}},
            {"selection": {"strategy": "utilization"}},
            {"schedulers": {"allow": [PEER], "maxShare": 1}},
            {"leases": {"durationSeconds": 60}},
            {"suspend": True, "suspendDeadline": "2030-01-31T08:00:00Z"},
            {"resources": {"cpu": "1", "memory": "1G", "storage": "1G"}},
            {"jobs": {"ttlSecondsAfterFinished": 5, "maxDurationSeconds": 60, "readAhead": 3}},
        ],
    )
    def test_a_change_that_the_running_node_takes_over_replaces_no_pod(self, changed):
        assert deployed(**changed) == deployed()

    def test_a_change_that_concerns_only_jobs_or_the_operator_replaces_no_pod(self):
        executors = [
            {"class": "train", "name": "diloco-transformer", "image": "mine:2", "template": {"spec": {}}},
            {"class": "aggregate", "name": "parameter-server", "env": {"A": "b"}},
        ]
        assert config_hash(deployed()) == config_hash(deployed(executors=executors))

    def test_a_new_peer_id_replaces_no_pod_but_configures_the_next_one(self):
        first = config_map(*worker(), [], peer_id=None)
        later = config_map(*worker(), [], peer_id=PEER)
        assert PEER in later["data"]["worker.toml"]
        assert PEER not in first["data"]["worker.toml"]
        allowed = {"secretName": "i", "allowPeerIdChange": True}
        changing = config_map(*worker(identity=allowed), [], peer_id=PEER)
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

    def test_headers_for_the_collector_reach_the_node_as_a_file_of_a_secret(self):
        telemetry = {
            "endpoint": "http://otel:4317",
            "protocol": "grpc",
            "headersSecret": {"name": "otel", "key": "all"},
        }
        spec = pod(deployed(telemetry=telemetry))
        volume = next(volume for volume in spec["volumes"] if volume["name"] == "telemetry")
        items = [{"key": "all", "path": "headers"}]
        assert volume["secret"] == {"secretName": "otel", "items": items, "defaultMode": 0o440}
        mount = next(m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "telemetry")
        assert mount == {"name": "telemetry", "mountPath": "/etc/hypha/telemetry", "readOnly": True}
        values = configured(telemetry=telemetry)
        assert values["telemetry_headers_file"] == "/etc/hypha/telemetry/headers"
        assert (values["telemetry_endpoint"], values["telemetry_protocol"]) == ("http://otel:4317", "grpc")

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
        deployment(manifest, spec, [], SETTINGS)
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
        assert with_host_ips(addresses, ()) == []
        assert with_host_ips(addresses, ("192.0.2.1",)) == ["/ip4/192.0.2.1/tcp/30401"]

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
        container = pod(deployment(manifest, spec, addresses, SETTINGS))["containers"][0]
        _, host_ips = container["env"]
        assert host_ips["valueFrom"] == {"fieldRef": {"fieldPath": "status.hostIPs"}}
        assert {"containerPort": 4001, "hostPort": 4100}.items() <= container["ports"][1].items()

    @pytest.mark.parametrize(
        ("listen", "reached"),
        [
            (["/ip4/0.0.0.0/tcp/4001"], ["/ip4/192.0.2.7/tcp/4001"]),
            (["/ip6/::/tcp/4001"], ["/ip6/fd00::5/tcp/4001"]),
        ],
    )
    def test_a_node_at_a_host_port_announces_the_addresses_of_the_family_at_which_it_listens(
        self, tmp_path, listen, reached
    ):
        """The kubelet of a node that prefers IPv6 names its IPv6 address first."""
        exposed = worker(network=network(expose={"type": "HostPort"}, listenAddresses=listen))
        addresses = external_addresses(exposed[1], None)
        file = tmp_path / "worker.toml"
        file.write_text(config_toml(node_config(*exposed, addresses=addresses, peer_id=None)))
        environ = {"HYPHA_KUBERNETES__HOST_IPS": "fd00::5,192.0.2.7"}
        assert list(network_config(load(file, environ).config).external_addresses) == reached
        assert with_host_ips(addresses, ["fd00::5", "192.0.2.7"]) == reached

    def test_a_node_port_has_the_address_families_of_its_service(self):
        manifest, spec = worker(
            network=network(expose={"type": "NodePort"}, listenAddresses=["/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"])
        )
        service = p2p_service(manifest, spec)
        assert service is not None
        assert service["spec"]["ipFamilyPolicy"] == "PreferDualStack"
        service["spec"] |= {"ipFamilies": ["IPv6", "IPv4"]}
        service["spec"]["ports"] = [{"protocol": "TCP", "port": 4001, "nodePort": 30401}]
        both = ["/ip4/192.0.2.7/tcp/30401", "/ip6/fd00::5/tcp/30401"]
        assert with_host_ips(external_addresses(spec, service), ["fd00::5", "192.0.2.7"]) == both
        service["spec"] |= {"ipFamilies": ["IPv6"]}
        assert with_host_ips(external_addresses(spec, service), ["fd00::5", "192.0.2.7"]) == both[1:]

    def test_a_service_has_the_one_family_at_which_the_node_listens(self):
        ipv4 = p2p_service(*worker(network=network(expose={"type": "NodePort"})))
        ipv6 = p2p_service(*worker(network=network(expose={"type": "NodePort"}, listenAddresses=["/ip6/::/tcp/4001"])))
        assert ipv4 is not None
        assert ipv6 is not None
        assert (ipv4["spec"]["ipFamilies"], ipv6["spec"]["ipFamilies"]) == (["IPv4"], ["IPv6"])

    def test_hosts_of_the_spec_replace_the_addresses_of_the_node(self):
        expose = {"type": "NodePort", "hosts": ["203.0.113.5", "2001:db8::5", "node.example.org"]}
        _, spec = worker(network=network(expose=expose))
        service = {"spec": {"ports": [{"protocol": "TCP", "port": 4001, "nodePort": 30401}]}}
        assert external_addresses(spec, service) == [
            "/ip4/203.0.113.5/tcp/30401",
            "/ip6/2001:db8::5/tcp/30401",
            "/dns/node.example.org/tcp/30401",
        ]

    def test_the_service_has_the_policies_and_source_ranges_of_the_spec(self):
        expose = {
            "type": "LoadBalancer",
            "ipFamilyPolicy": "RequireDualStack",
            "externalTrafficPolicy": "Local",
            "sourceRanges": ["203.0.113.0/24"],
        }
        service = p2p_service(*worker(network=network(expose=expose)))
        assert service is not None
        assert (
            service["spec"].items()
            >= {
                "ipFamilyPolicy": "RequireDualStack",
                "externalTrafficPolicy": "Local",
                "loadBalancerSourceRanges": ["203.0.113.0/24"],
            }.items()
        )
        assert "ipFamilies" not in service["spec"]

    def test_the_host_ip_of_the_pod_does_not_replace_the_pod(self):
        exposed = {"network": network(expose={"type": "HostPort"})}
        _, spec = worker(**exposed)
        addresses = tuple(external_addresses(spec, None))
        assert "HOST_IP" not in str(config_map(*worker(**exposed), list(addresses), peer_id=None))


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

    def test_only_jobs_of_this_worker_reach_the_connector(self):
        peers, jobs, _ = network_policy(*worker(), ())["spec"]["ingress"]
        assert peers == {"ports": [{"protocol": "TCP", "port": 4001}]}
        assert jobs["from"][0]["podSelector"]["matchLabels"]["hypha.space/worker"] == "gpu"
        assert jobs["ports"][0]["port"] == 8443

    def test_pods_of_every_namespace_reach_the_metrics_on_a_port_of_their_own(self):
        *_, prometheus = network_policy(*worker(), SETTINGS.metrics_from)["spec"]["ingress"]
        assert prometheus == {"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": 9464}]}
        ports = {port["name"]: port["containerPort"] for port in pod(deployed())["containers"][0]["ports"]}
        assert ports["metrics"] == 9464
        assert configured()["telemetry_prometheus"] == ":9464"


class TestStatusPage:
    READERS = [{"podSelector": {"matchLabels": {"app": "proxy"}}}]  # noqa: RUF012

    def test_there_is_none_unless_the_spec_asks_for_it(self):
        assert status_service(*worker()) is None
        assert "status_page" not in configured()
        off = {"enabled": False, "from": self.READERS}
        assert status_service(*worker(statusPage=off)) is None
        assert "status_page" not in configured(statusPage=off)

    def test_without_readers_it_is_served_to_port_forwards_alone(self):
        assert configured(statusPage={"enabled": True})["status_page"] == {"listen": "8081", "hosts": []}
        assert status_service(*worker(statusPage={"enabled": True})) is None
        assert network_policy(*worker(statusPage={"enabled": True}), ()) == network_policy(*worker(), ())

    def test_readers_reach_it_by_the_names_of_its_service_and_of_the_spec(self):
        page = {"enabled": True, "from": self.READERS, "hosts": ["worker.example.org"]}
        service = status_service(*worker(statusPage=page))
        assert service is not None
        [port] = service["spec"]["ports"]
        *_, allowed = network_policy(*worker(statusPage=page), ())["spec"]["ingress"]
        assert allowed == {"from": self.READERS, "ports": [{"protocol": "TCP", "port": port["port"]}]}
        listening = configured(statusPage=page)["status_page"]
        assert listening["listen"] == f":{port['targetPort']}"
        names = ["gpu-status", "gpu-status.ns", "gpu-status.ns.svc", "worker.example.org"]
        assert listening["hosts"] == names
        assert service["metadata"]["name"] == names[0]
        assert service["spec"]["selector"].items() <= pod_labels(deployed(statusPage=page)).items()
        [container] = pod(deployed(statusPage=page))["containers"]
        assert {"name": "status", "containerPort": port["targetPort"], "protocol": "TCP"} in container["ports"]


def pod_labels(manifest: dict[str, Any]) -> dict[str, str]:
    return manifest["spec"]["template"]["metadata"]["labels"]


def test_a_renewed_certificate_keeps_its_key():
    identity = {"issuerRef": {"name": "ca", "kind": "ClusterIssuer"}, "trustSecretName": "network"}
    issued = certificate(*worker(identity=identity))
    assert issued is not None
    assert issued["spec"]["privateKey"] == {"algorithm": "Ed25519", "encoding": "PKCS8", "rotationPolicy": "Never"}
    assert issued["spec"]["secretName"] == "gpu-identity"
    assert issued["spec"]["dnsNames"]
    assert issued["spec"]["ipAddresses"] == ["0.0.0.0"], "the reference dials no peer without this name"
    assert certificate(*worker()) is None


def test_a_missing_variable_of_the_settings_is_named_in_the_error():
    environ = {f"HYPHA_{part}_IMAGE": "x" for part in ("WORKER", "BRIDGE", "TRAINER")}
    with pytest.raises(SettingsError, match="HYPHA_PARAMETER_SERVER_IMAGE"):
        Settings.from_environment(environ)


def test_whether_pods_name_their_user_is_true_or_false():
    environ = {f"HYPHA_{part}_IMAGE": "x" for part in ("WORKER", "BRIDGE", "TRAINER", "PARAMETER_SERVER")}
    for text, expected in {"true": True, "false": False, "": True}.items():
        assert Settings.from_environment(environ | {"HYPHA_USER_IDS": text}).user_ids is expected
    with pytest.raises(SettingsError, match="HYPHA_USER_IDS is 'no'"):
        Settings.from_environment(environ | {"HYPHA_USER_IDS": "no"})


def test_the_readers_of_metrics_are_a_list_in_json():
    environ = {f"HYPHA_{part}_IMAGE": "x" for part in ("WORKER", "BRIDGE", "TRAINER", "PARAMETER_SERVER")}
    readers = Settings.from_environment(environ | {"HYPHA_METRICS_FROM": '[{"podSelector": {}}]'}).metrics_from
    assert readers == ({"podSelector": {}},)
    for wrong in ("{}", "all", "[", "3"):
        with pytest.raises(SettingsError, match="HYPHA_METRICS_FROM"):
            Settings.from_environment(environ | {"HYPHA_METRICS_FROM": wrong})
