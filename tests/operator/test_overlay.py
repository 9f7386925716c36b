"""Merging of users' pod templates into the operator's."""

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypha_contracts.names import job_labels
from hypha_operator.pods.accelerate import ACCELERATE_ANNOTATION
from hypha_operator.pods.overlay import OverlayError, merge_pod_template
from hypha_operator.pods.pod import pod_template
from support.operating import SETTINGS
from support.operator_objects import job_spec, worker_spec
from support.pod_security import breaches_of_isolation, breaches_of_restricted, named_secrets

BASE = pod_template(
    {"name": "hypha-1", "namespace": "gpu"},
    job_spec(resources={"cpu": 4, "memory": 16, "storage": 10, "gpu": 60}),
    worker_spec(),
    SETTINGS,
)
IDENTITY = {"gpu-worker-identity"}


def merge(overlay: dict[str, Any], base: dict[str, Any] = BASE, *, allow: bool = False) -> dict[str, Any]:
    return merge_pod_template(base, overlay, allow_privileged=allow, leased=("executor",), keys=IDENTITY)


def container(template: dict[str, Any], name: str) -> dict[str, Any]:
    spec = template["spec"]
    return next(c for c in [*spec["initContainers"], *spec["containers"]] if c["name"] == name)


def test_an_empty_overlay_changes_nothing() -> None:
    assert merge({}) == BASE


def test_scheduling_fields_pass_through() -> None:
    placed = {
        "metadata": {"labels": {"env": "prod"}, "annotations": {"team": "a", "prometheus.io/scrape": "true"}},
        "spec": {
            "priorityClassName": "batch",
            "nodeSelector": {"gpu": "h200"},
            "affinity": {"nodeAffinity": {}},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "topologySpreadConstraints": [
                {"topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "maxSkew": 1, "labelSelector": {}}
            ],
        },
    }
    merged = merge(placed)
    assert merged["metadata"]["labels"] == BASE["metadata"]["labels"] | {"env": "prod"}
    assert merged["spec"]["tolerations"] == [*BASE["spec"]["tolerations"], {"key": "gpu", "operator": "Exists"}]
    assert {k: merged["spec"][k] for k in ("priorityClassName", "nodeSelector")} == {
        "priorityClassName": "batch",
        "nodeSelector": {"gpu": "h200"},
    }


def test_lists_are_merged_by_key_and_never_by_position() -> None:
    merged = merge(
        {
            "spec": {
                "initContainers": [{"name": "bridge", "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]}],
                "containers": [
                    {
                        "name": "executor",
                        "image": "mine:1",
                        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
                    }
                ],
                "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
            }
        }
    )
    assert [v["name"] for v in merged["spec"]["volumes"]] == [*(v["name"] for v in BASE["spec"]["volumes"]), "models"]
    assert container(merged, "executor")["image"] == "mine:1"
    assert container(merged, "executor")["command"] == container(BASE, "executor")["command"]
    assert container(merged, "executor")["volumeMounts"][:-1] == container(BASE, "executor")["volumeMounts"]
    assert container(merged, "bridge")["env"][0] == container(BASE, "bridge")["env"][0]


def test_a_container_that_a_template_adds_is_confined_like_the_operators() -> None:
    merged = merge(
        {"spec": {"containers": [{"name": "logs", "image": "x", "resources": {"limits": {"memory": "1Gi"}}}]}}
    )
    assert container(merged, "logs")["securityContext"] == container(BASE, "executor")["securityContext"]


def test_a_template_may_add_resources_but_not_change_those_of_the_lease() -> None:
    more = {"name": "executor", "resources": {"limits": {"rdma/hca": "1"}, "requests": {"rdma/hca": "1"}}}
    assert container(merge({"spec": {"containers": [more]}}), "executor")["resources"]["limits"] == (
        container(BASE, "executor")["resources"]["limits"] | {"rdma/hca": "1"}
    )


def in_executor(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "executor", **fields}]}}


def in_bridge(**fields: Any) -> dict[str, Any]:
    return {"spec": {"initContainers": [{"name": "bridge", **fields}]}}


def volume(**source: Any) -> dict[str, Any]:
    return {"spec": {"volumes": [{"name": "extra", **source}]}}


TOKEN = {"sources": [{"serviceAccountToken": {"path": "token"}}]}
WEAKENING = [
    ({"spec": {"hostNetwork": True}}, "spec.hostNetwork"),
    ({"spec": {"hostPID": True}}, "spec.hostPID"),
    ({"spec": {"hostIPC": True}}, "spec.hostIPC"),
    ({"spec": {"shareProcessNamespace": True}}, "spec.shareProcessNamespace"),
    ({"spec": {"hostUsers": True}}, "spec.hostUsers"),
    ({"spec": {"serviceAccountName": "default"}}, "spec.serviceAccountName"),
    ({"spec": {"serviceAccount": "default"}}, "spec.serviceAccount"),
    ({"spec": {"automountServiceAccountToken": True}}, "spec.automountServiceAccountToken"),
    ({"spec": {"automountServiceAccountToken": None}}, "spec.automountServiceAccountToken"),
    ({"spec": {"securityContext": {"runAsUser": 0}}}, "spec.securityContext.runAsUser"),
    ({"spec": {"securityContext": None}}, "spec.securityContext"),
    ({"spec": {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}}, "sysctls"),
    ({"spec": {"securityContext": {"supplementalGroups": [0]}}}, "supplementalGroups"),
    ({"spec": {"aFieldOfTheFuture": True}}, "spec.aFieldOfTheFuture"),
    (volume(hostPath={"path": "/"}), "spec.volumes[extra].hostPath"),
    (volume(nfs={"server": "x", "path": "/"}), "spec.volumes[extra].nfs"),
    (volume(emptyDir={}), "spec.volumes[extra].emptyDir"),
    (volume(projected=TOKEN), "spec.volumes[extra].projected"),
    (in_executor(securityContext={"privileged": True}), "securityContext"),
    (in_executor(securityContext={"capabilities": {"add": ["SYS_ADMIN"]}}), "securityContext"),
    (in_executor(securityContext={"allowPrivilegeEscalation": True}), "securityContext"),
    (in_executor(securityContext={"runAsUser": 0}), "securityContext"),
    (in_executor(securityContext={"seccompProfile": {"type": "Unconfined"}}), "securityContext"),
    (in_executor(securityContext={"procMount": "Unmasked"}), "securityContext"),
    (in_executor(securityContext={"readOnlyRootFilesystem": None}), "securityContext"),
    (in_executor(ports=[{"containerPort": 80, "hostPort": 80}]), "hostPort"),
    (in_executor(lifecycle={"preStop": {"httpGet": {"host": "10.0.0.1", "port": 1}}}), "host"),
    (
        {"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/executor": "unconfined"}}},
        "apparm",
    ),
    *(
        ({"metadata": {"annotations": {name: "x"}}}, f"metadata.annotations[{name}]")
        for name in (
            "k8s.v1.cni.cncf.io/networks",
            "v1.multus-cni.io/default-network",
            "io.katacontainers.config.hypervisor.kernel_params",
            "dev.gvisor.spec.mount.tmp.source",
            "io.kubernetes.cri-o.Devices",
            "cdi.k8s.io/gpu",
            "networking.gke.io/interfaces",
            "kubernetes.io/egress-bandwidth",
            "sidecar.istio.io/userVolume",
            "vault.hashicorp.com/agent-inject",
            "an-add-on.of-the-future.example/networks",
        )
    ),
    *(
        ({"metadata": {"labels": {name: "x"}}}, f"metadata.labels[{name}]")
        for name in ("sidecar.istio.io/userVolume", "azure.workload.identity/use", "aadpodidbinding")
    ),
    *(
        ({"spec": {field: value}}, f"spec.{field}")
        for field, value in {
            "nodeName": "control-plane-1",
            "priorityClassName": "system-node-critical",
            "ephemeralContainers": [{"name": "debug", "image": "x"}],
            "shareProcessNamespace": "true",
            "activeDeadlineSeconds": 1,
            "setHostnameAsFQDN": "yes",
            "schedulerName": ["x"],
            "os": {"name": "windows"},
        }.items()
    ),
    *(
        ({"spec": {"securityContext": context}}, "spec.securityContext")
        for context in (
            {"supplementalGroups": ["0"]},
            {"supplementalGroups": [False]},
            {"supplementalGroups": [0.0]},
            {"supplementalGroups": "0"},
            {"fsGroup": "0"},
            {"runAsUser": "0"},
            {"runAsGroup": 0.0},
            {"windowsOptions": {"hostProcess": True}},
        )
    ),
    (volume(secret={"secretName": "other", "name": "decoy"}), "spec.volumes[extra].secret.name"),
    (volume(csi={"driver": "secrets-store.csi.k8s.io"}), "spec.volumes[extra].csi"),
    (volume(hostPath={"path": "/"}, configMap={"name": "decoy"}), "spec.volumes[extra].hostPath"),
    (volume(emptyDir={"sizeLimit": "0"}), "spec.volumes[extra].emptyDir"),
    (volume(), "spec.volumes[extra].emptyDir"),
    (volume(projected={"sources": [{"podCertificate": {}}]}), "podCertificate"),
    (volume(projected={"sources": [{"serviceAccountToken": {"path": "t", "audience": "vault"}}]}), "serviceAccount"),
    (volume(ephemeral={"volumeClaimTemplate": {"spec": {"volumeMode": "Block"}}}), "volumeMode"),
    (volume(ephemeral={"volumeClaimTemplate": {"metadata": {"annotations": {"a": "b"}}}}), "annotations"),
    (in_executor(volumeMounts=[{"name": "x", "mountPath": "/x", "subPathExpr": "$(A)"}]), "subPathExpr"),
    (in_executor(volumeMounts=[{"name": "x", "mountPath": "/x", "mountPropagation": "Bidirectional"}]), "Propagation"),
    (in_executor(env=[{"name": "A", "valueFrom": {"fileKeyRef": {}}}]), "fileKeyRef"),
    (in_executor(ports=[{"containerPort": 80, "hostIP": "0.0.0.0"}]), "hostIP"),
    (
        {"spec": {"containers": [{"name": "second", "image": "x", "resources": {"limits": {"memory": "0"}}}]}},
        "limits.memory",
    ),
    (
        {
            "spec": {
                "containers": [
                    {"name": "second", "image": "x", "stdin": True, "resources": {"limits": {"memory": "1Gi"}}}
                ]
            }
        },
        "spec.containers[second].stdin",
    ),
    ({"spec": {"containers": [{"name": "second", "image": "x"}]}}, "limits.memory"),
    (in_executor(livenessProbe={"tcpSocket": {"host": "10.0.0.1", "port": 1}}), "livenessProbe"),
]
BREAKING = [
    ({"spec": {"restartPolicy": "Always"}}, "spec.restartPolicy"),
    ({"spec": {"terminationGracePeriodSeconds": 149}}, "at least 150"),
    ({"spec": {"terminationGracePeriodSeconds": None}}, "terminationGracePeriodSeconds"),
    ({"spec": {"volumes": [{"name": "job", "emptyDir": {"sizeLimit": "1Ti"}}]}}, "spec.volumes[job]"),
    ({"spec": {"volumes": [{"name": "job", "emptyDir": {"medium": "Memory"}}]}}, "spec.volumes[job]"),
    ({"spec": {"volumes": [{"name": "spec", "secret": {"secretName": "other"}}]}}, "spec.volumes[spec]"),
    ({"spec": {"volumes": None}}, "spec.volumes[job]"),
    ({"spec": {"initContainers": None}}, "lacks bridge"),
    ({"metadata": {"labels": {"hypha.space/job": "other"}}}, "hypha.space/job"),
    ({"metadata": {"labels": {"app.kubernetes.io/component": None}}}, "component"),
    ({"metadata": {"labels": {"app.kubernetes.io/version": "1"}}}, "app.kubernetes.io/version"),
    ({"metadata": {"ownerReferences": []}}, "metadata.ownerReferences"),
    ({"kind": "Pod"}, "template.kind"),
    (in_bridge(command=["sh"]), "[bridge].command"),
    (in_bridge(restartPolicy=None), "[bridge].restartPolicy"),
    (in_bridge(env=[{"name": "HYPHA_BRIDGE_CONFIG", "value": "{}"}]), "env[HYPHA_BRIDGE_CONFIG]"),
    (in_bridge(volumeMounts=[{"mountPath": "/var/run/hypha/token", "name": "tmp"}]), "volumeMounts"),
    (in_bridge(startupProbe={"exec": {"command": ["true"]}}), "startupProbe"),
    (in_executor(resources={"limits": {"memory": "1Ti"}}), "resources.limits.memory"),
    (in_executor(resources={"limits": {"nvidia.com/gpu": "4"}}), "resources.limits.nvidia.com/gpu"),
    (in_executor(resources={"limits": None}), "resources.limits.memory"),
    (in_executor(volumeMounts=[{"mountPath": "/t", "name": "token"}]), "volumeMounts[/t]"),
    (in_executor(volumeMounts=[{"mountPath": "/job", "name": "job"}]), "volumeMounts[/job]"),
    (in_executor(terminationMessagePolicy="File"), "terminationMessagePolicy"),
    (in_executor(volumeDevices=[{"name": "disk", "devicePath": "/dev/sda"}]), "volumeDevices"),
    (volume(secret={"secretName": "gpu-worker-identity"}), "gpu-worker-identity"),
    (volume(projected={"sources": [{"secret": {"name": "gpu-worker-identity"}}]}), "gpu-worker-identity"),
    (in_executor(envFrom=[{"secretRef": {"name": "gpu-worker-identity"}}]), "gpu-worker-identity"),
    *(
        (volume(**source), "gpu-worker-identity")
        for source in (
            {"secret": {"secretName": "decoy", "name": "gpu-worker-identity"}},
            {"secret": {"secretName": "gpu-worker-identity", "name": "decoy"}},
            {"projected": {"sources": [{"secret": {"secretName": "decoy", "name": "gpu-worker-identity"}}]}},
            {"csi": {"driver": "x", "nodePublishSecretRef": {"name": "gpu-worker-identity"}}},
            {"azureFile": {"secretName": "gpu-worker-identity", "shareName": "x"}},
            {"scaleIO": {"secretRef": {"name": "gpu-worker-identity"}}},
        )
    ),
    (
        in_executor(
            env=[{"name": "A", "valueFrom": {"secretKeyRef": {"name": "gpu-worker-identity", "key": "tls.key"}}}]
        ),
        "gpu-worker-identity",
    ),
]


@pytest.mark.parametrize(("overlay", "named"), WEAKENING + BREAKING, ids=str)
def test_a_template_that_weakens_or_breaks_a_pod_is_refused_with_the_path(overlay: dict[str, Any], named: str) -> None:
    with pytest.raises(OverlayError) as refused:
        merge(overlay)
    assert named in str(refused.value)
    assert "template." in str(refused.value)


@pytest.mark.parametrize(("overlay", "named"), WEAKENING, ids=str)
def test_the_option_permits_weaker_isolation(overlay: dict[str, Any], named: str) -> None:
    assert merge(overlay, allow=True) != BASE


@pytest.mark.parametrize(("overlay", "named"), BREAKING, ids=str)
def test_the_option_does_not_permit_a_broken_pod(overlay: dict[str, Any], named: str) -> None:
    with pytest.raises(OverlayError, match=r"template\."):
        merge(overlay, allow=True)


@pytest.mark.parametrize(
    "malformed",
    [
        {"spec": {"containers": [{"name": "executor", "env": [{"name": "A"}, {"name": "A", "value": "1"}]}]}},
        {"spec": []},
        {"spec": None},
        {"metadata": None},
        {"metadata": {"labels": "x"}},
        {"spec": {"containers": "executor"}},
        {"spec": {"containers": [{"image": "x"}]}},
        {"spec": {"containers": ["executor"]}},
        {"spec": {"containers": [{"name": "executor", "env": {"A": "1"}}]}},
        {"spec": {"volumes": [{"name": "x", "projected": {"sources": ["y"]}}]}},
    ],
    ids=str,
)
def test_a_malformed_template_is_refused_with_its_path(malformed: dict[str, Any]) -> None:
    with pytest.raises(OverlayError, match=r"template\.(spec|metadata)"):
        merge(malformed)


# Templates as someone would write who wants out.

LEAF = st.sampled_from([None, True, False, 0, 1, 65532, "", "0", "Always", "Unconfined", "gpu-worker-identity", [], {}])
CONTEXT = st.dictionaries(
    st.sampled_from(
        [
            *("privileged", "allowPrivilegeEscalation", "runAsUser", "runAsNonRoot", "readOnlyRootFilesystem"),
            *("procMount", "seccompProfile", "capabilities", "seLinuxOptions", "appArmorProfile", "windowsOptions"),
            *("runAsGroup", "fsGroup", "supplementalGroups", "sysctls", "fsGroupChangePolicy"),
        ]
    ),
    LEAF
    | st.just({"type": "Unconfined"})
    | st.just({"add": ["SYS_ADMIN"]})
    | st.just({"drop": []})
    | st.just({"drop": ["ALL"]}),
    max_size=3,
)
MOUNT = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["job", "spec", "token", "tmp", "shm", "extra"]),
        "mountPath": st.sampled_from(["/x", "/job", "/job/work", "/tmp", "/var/run/hypha/token", "/dev/shm"]),
    },
    optional={"subPath": st.sampled_from(["work", "state", ""]), "mountPropagation": st.just("Bidirectional")},
)
HANDLER = st.sampled_from([{"httpGet": {"host": "10.0.0.1", "port": 1}}, {"tcpSocket": {"port": 1}}, {}, None])
CONTAINER = st.fixed_dictionaries(
    {"name": st.sampled_from(["executor", "bridge", "second", "init"])},
    optional={
        "image": st.just("x"),
        "command": st.sampled_from([None, [], ["sh"]]),
        "restartPolicy": LEAF,
        "securityContext": CONTEXT | LEAF,
        "volumeMounts": st.lists(MOUNT, max_size=2) | LEAF,
        "resources": LEAF
        | st.just({"limits": {"memory": "1Ti"}})
        | st.just({"limits": None})
        | st.just({"requests": {"cpu": "0"}}),
        "ports": st.just([{"containerPort": 80, "hostPort": 80}]) | st.just([{"containerPort": 80}]),
        "env": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["A", "HYPHA_BRIDGE_CONFIG"]), "value": LEAF})),
        "envFrom": st.just([{"secretRef": {"name": "gpu-worker-identity"}}]) | LEAF,
        "startupProbe": HANDLER,
        "livenessProbe": HANDLER,
        "lifecycle": st.dictionaries(st.sampled_from(["preStop", "postStart"]), HANDLER),
        "terminationMessagePolicy": LEAF,
        "stdin": LEAF,
    },
)
VOLUME = st.fixed_dictionaries(
    {"name": st.sampled_from(["job", "spec", "token", "tmp", "shm", "extra"])},
    optional={
        "emptyDir": st.sampled_from([{}, {"sizeLimit": "1G"}, {"medium": "Memory"}, None]),
        "hostPath": st.just({"path": "/"}) | LEAF,
        "secret": st.sampled_from([{"secretName": "gpu-worker-identity"}, {"secretName": "other"}, None]),
        "projected": st.sampled_from(
            [TOKEN, {"sources": [{"secret": {"name": "gpu-worker-identity"}}]}, {"sources": [{"podCertificate": {}}]}]
        ),
        "nfs": LEAF,
        "configMap": st.just({"name": "x"}),
    },
)
SPEC = st.dictionaries(
    st.sampled_from(
        [
            *("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "hostUsers", "serviceAccountName"),
            *("serviceAccount", "automountServiceAccountToken", "restartPolicy", "terminationGracePeriodSeconds"),
            *("enableServiceLinks", "nodeName", "priorityClassName", "resources", "tolerations", "resourceClaims"),
            *("volumes", "containers", "initContainers", "securityContext", "ephemeralContainers"),
        ]
    ),
    LEAF,
    max_size=2,
)
OVERLAY = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.fixed_dictionaries(
            {},
            optional={
                "labels": LEAF
                | st.dictionaries(st.sampled_from(["hypha.space/job", "env", "app.kubernetes.io/component"]), LEAF)
            },
        ),
        "spec": st.builds(
            lambda plain, lists: plain | lists,
            SPEC,
            st.fixed_dictionaries(
                {},
                optional={
                    "containers": st.lists(CONTAINER, max_size=2),
                    "initContainers": st.lists(CONTAINER, max_size=2),
                    "volumes": st.lists(VOLUME, max_size=2),
                    "securityContext": CONTEXT,
                },
            ),
        ),
    },
)


@settings(max_examples=1500)  # of which a twelfth is accepted
@given(overlay=OVERLAY)
def test_no_template_makes_a_pod_that_is_not_isolated(overlay: dict[str, Any]) -> None:
    before = copy.deepcopy((overlay, BASE))
    try:
        merged = merge(overlay)
    except OverlayError:
        return
    finally:
        assert (overlay, BASE) == before
    assert breaches_of_restricted(merged["spec"]) == []
    assert breaches_of_isolation(merged, grace_s=150, identity=IDENTITY) == []
    assert merge(overlay, merged) == merged, "merging once more changes nothing"


@settings(max_examples=1000)
@given(overlay=OVERLAY)
def test_no_opt_in_makes_a_pod_that_does_not_work(overlay: dict[str, Any]) -> None:
    try:
        merged = merge(overlay, allow=True)
    except OverlayError:
        return
    bridge, ours = container(merged, "bridge"), container(BASE, "bridge")
    assert {k: bridge.get(k) for k in ("command", "restartPolicy", "startupProbe")} == {
        k: ours.get(k) for k in ("command", "restartPolicy", "startupProbe")
    }
    assert [v for v in merged["spec"]["volumes"] if v in BASE["spec"]["volumes"]] == BASE["spec"]["volumes"]
    assert merged["metadata"]["labels"].items() >= job_labels("gpu-worker", "hypha-1").items()
    assert not IDENTITY & named_secrets(merged["spec"])


def test_a_template_may_let_a_mesh_and_the_autoscaler_at_the_pod() -> None:
    labels = {"sidecar.istio.io/inject": "true", "istio.io/dataplane-mode": None}
    annotations = {"linkerd.io/inject": "enabled", "cluster-autoscaler.kubernetes.io/safe-to-evict": "true"}
    metadata = merge({"metadata": {"labels": labels, "annotations": annotations}})["metadata"]
    assert metadata["labels"] == job_labels("gpu-worker", "hypha-1") | {"sidecar.istio.io/inject": "true"}
    del metadata["annotations"][ACCELERATE_ANNOTATION]
    assert metadata["annotations"] == annotations | {"karpenter.sh/do-not-disrupt": "true"}


def test_what_templates_are_for_needs_no_opt_in() -> None:
    probe = {"httpGet": {"path": "/", "port": "web"}, "periodSeconds": 5}
    merge(
        {
            "metadata": {"labels": {"team": "a", "kueue.x-k8s.io/priority-class": "low"}},
            "spec": {
                "runtimeClassName": "gvisor",
                "schedulerName": "volcano",
                "hostUsers": False,
                "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
                "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["mirror"]}],
                "securityContext": {"supplementalGroups": [44], "fsGroupChangePolicy": "OnRootMismatch"},
                "volumes": [
                    {"name": "data", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}},
                    {"name": "model", "image": {"reference": "models:1", "pullPolicy": "IfNotPresent"}},
                    {"name": "cache", "emptyDir": {"sizeLimit": "1Gi"}},
                    {
                        "name": "all",
                        "projected": {
                            "defaultMode": 0o440,
                            "sources": [
                                {"secret": {"name": "a", "items": [{"key": "b", "path": "c"}]}},
                                {"configMap": {"name": "a", "optional": True}},
                                {"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.uid"}}]}},
                            ],
                        },
                    },
                    {
                        "name": "scratch",
                        "ephemeral": {
                            "volumeClaimTemplate": {
                                "spec": {
                                    "accessModes": ["ReadWriteOnce"],
                                    "storageClassName": "fast",
                                    "resources": {"requests": {"storage": "10Gi"}},
                                }
                            }
                        },
                    },
                ],
                "containers": [
                    {
                        "name": "executor",
                        "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}],
                        "envFrom": [{"configMapRef": {"name": "a"}}],
                        "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
                        "livenessProbe": probe,
                        "readinessProbe": probe,
                        "startupProbe": probe,
                    },
                    {
                        "name": "metrics",
                        "image": "exporter:1",
                        "args": ["--port", "9400"],
                        "ports": [{"name": "web", "containerPort": 9400}],
                        "livenessProbe": probe,
                        "resources": {"limits": {"memory": "1Gi", "cpu": 0.5}},
                    },
                ],
            },
        }
    )
