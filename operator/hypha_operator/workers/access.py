"""Build the service accounts of the controller and of the jobs, and the controller's permissions."""

from hypha_contracts.kinds import ROLE, ROLE_BINDING, SERVICE_ACCOUNT, Manifest
from hypha_contracts.names import GROUP, JOBS, WORKERS, controller_name, job_account
from hypha_operator.machinery.manifests import child

_RBAC = "rbac.authorization.k8s.io"


def access(hypha_worker: Manifest) -> list[Manifest]:
    """Return the service accounts, the controller's Role and its RoleBinding."""
    namespace, worker = hypha_worker["metadata"]["namespace"], hypha_worker["metadata"]["name"]
    name = controller_name(worker)
    rules = [
        {"apiGroups": [GROUP], "resources": [JOBS], "verbs": ["get", "list", "watch", "create", "patch"]},
        {"apiGroups": [GROUP], "resources": [f"{JOBS}/status"], "verbs": ["patch"]},
        {"apiGroups": [GROUP], "resources": [WORKERS], "resourceNames": [worker], "verbs": ["get", "watch"]},
        {"apiGroups": [GROUP], "resources": [f"{WORKERS}/status"], "resourceNames": [worker], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
    ]
    return [
        child(hypha_worker, SERVICE_ACCOUNT, name),
        child(hypha_worker, SERVICE_ACCOUNT, job_account(worker), automountServiceAccountToken=False),
        child(hypha_worker, ROLE, name, rules=rules),
        child(
            hypha_worker,
            ROLE_BINDING,
            name,
            roleRef={"apiGroup": _RBAC, "kind": "Role", "name": name},
            subjects=[{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        ),
    ]
