"""The rules for every pod of a job, independent of the operator's code that applies them."""

import re
from typing import Any

RESTRICTED_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected"),
    "secret",
}


def breaches_of_restricted(spec: dict[str, Any]) -> list[str]:
    """Return the reasons for which the Pod Security Standard `restricted` refuses this pod."""
    found = [field for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    pod = spec.get("securityContext") or {}
    found += _of_context(pod, "pod")
    if any(sysctl["name"] != "kernel.shm_rmid_forced" for sysctl in pod.get("sysctls") or []):
        found.append("sysctls")
    for volume in spec.get("volumes") or []:
        kinds = set(volume) - {"name"}
        if not kinds <= RESTRICTED_VOLUMES:
            found.append(f"volume {volume['name']}: {kinds}")
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        name, context = container["name"], container.get("securityContext") or {}
        found += _of_context(context, name)
        if context.get("privileged"):
            found.append(f"{name}: privileged")
        if context.get("allowPrivilegeEscalation") is not False:
            found.append(f"{name}: escalation")
        capabilities = context.get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or []) or set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
            found.append(f"{name}: capabilities")
        if context.get("procMount") not in (None, "Default"):
            found.append(f"{name}: procMount")
        if not context.get("runAsNonRoot", pod.get("runAsNonRoot")):
            found.append(f"{name}: root")
        seccomp = context.get("seccompProfile", pod.get("seccompProfile")) or {}
        if seccomp.get("type") not in ("RuntimeDefault", "Localhost"):
            found.append(f"{name}: seccomp")
        if any(port.get("hostPort") for port in container.get("ports") or []):
            found.append(f"{name}: hostPort")
        handlers = [container.get(f"{probe}Probe") or {} for probe in ("startup", "liveness", "readiness")]
        handlers += [hook for hook in (container.get("lifecycle") or {}).values() if isinstance(hook, dict)]
        if any((handler.get(kind) or {}).get("host") for handler in handlers for kind in ("httpGet", "tcpSocket")):
            found.append(f"{name}: host of a probe")
    return found


def _of_context(context: dict[str, Any], name: str) -> list[str]:
    found = []
    if context.get("runAsUser") == 0:
        found.append(f"{name}: user 0")
    if context.get("runAsNonRoot") is False:
        found.append(f"{name}: may be root")
    if (context.get("seccompProfile") or {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
        found.append(f"{name}: seccomp")
    if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
        found.append(f"{name}: AppArmor")
    if context.get("seLinuxOptions"):
        found.append(f"{name}: SELinux")
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        found.append(f"{name}: host process")
    return found


def breaches_of_isolation(template: dict[str, Any], *, grace_s: int, identity: set[str]) -> list[str]:
    """Return the ways in which a job's pod could reach other resources or break the job's own mechanics."""
    spec, labels = template["spec"], template["metadata"]["labels"]
    found = [name for name in ("hypha.space/job", "hypha.space/worker") if not labels.get(name)]
    if labels.get("app.kubernetes.io/component") != "job":
        found.append("component label")
    containers = {c["name"]: c for c in spec["containers"]}
    sidecars = {c["name"]: c for c in spec["initContainers"]}
    bridge, executor = sidecars.get("bridge") or {}, containers.get("executor") or {}
    found += [] if spec.get("shareProcessNamespace") in (None, False) else ["shared processes"]
    found += [] if spec.get("automountServiceAccountToken", True) in (False, 0) else ["service account's token"]
    found += [] if str(spec.get("serviceAccountName")).endswith("-job") else ["service account"]
    found += [] if spec.get("restartPolicy") == "Never" else ["restartPolicy"]
    found += [] if spec.get("terminationGracePeriodSeconds", 0) >= grace_s else ["grace"]
    found += [] if bridge.get("restartPolicy") == "Always" and bridge.get("startupProbe") else ["no sidecar"]
    found += [] if executor.get("terminationMessagePolicy") == "FallbackToLogsOnError" else ["last words"]
    tokens = set()
    for volume in spec["volumes"]:
        sources = (volume.get("projected") or {}).get("sources") or []
        if any(set(source) - {"configMap", "downwardAPI", "secret", "clusterTrustBundle"} for source in sources):
            tokens.add(volume["name"])
        if "emptyDir" in volume and not volume["emptyDir"].get("sizeLimit"):
            found.append(f"{volume['name']} without limit")
    found += [] if tokens == {"token"} else [f"tokens in {tokens}"]
    for container in [*spec["initContainers"], *spec["containers"]]:
        name = container["name"]
        mounts = {m["mountPath"]: m for m in container.get("volumeMounts") or []}
        names = {mount["name"] for mount in mounts.values()}
        if name != "bridge" and names & {"token", "tmp"}:
            found.append(f"{name} mounts the bridge's volumes")
        if name not in ("bridge", "executor") and names & {"job", "spec", "shm"}:
            found.append(f"{name} mounts the job's volumes")
        whole = [m for m in mounts.values() if m["name"] == "job" and not str(m.get("subPath")).startswith("work")]
        if name != "bridge" and whole:
            found.append(f"{name} mounts the bridge's state")
        if not ((container.get("resources") or {}).get("limits") or {}).get("memory"):
            found.append(f"{name} without memory limit")
        if any(mount.get("mountPropagation") not in (None, "None") for mount in mounts.values()):
            found.append(f"{name} propagates mounts")
        if (container.get("securityContext") or {}).get("runAsUser", 65532) != 65532:
            found.append(f"{name}: another user")
    if (spec.get("securityContext") or {}).get("runAsUser") != 65532:
        found.append("another user")
    return found + [f"reads {name}" for name in identity & named_secrets(spec)]


def named_secrets(spec: dict[str, Any]) -> set[str]:
    """Return every name in a pod that could be a Secret's."""
    parts = str([spec.get(part) for part in ("volumes", "initContainers", "containers")])
    return set(re.findall(r"'(?:name|secretName)': '([^']+)'", parts))
