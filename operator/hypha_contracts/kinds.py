"""The kinds of objects that the operator and `kubectl hypha` read or write, and their names in the API."""

from typing import Any, Final, NamedTuple, TypeAlias

from hypha_contracts.names import API_VERSION, JOB_KIND, JOBS, WORKER_KIND, WORKERS

Manifest: TypeAlias = dict[str, Any]
"""An object as the API server accepts and returns it."""


class Kind(NamedTuple):
    """A kind of object."""

    api_version: str
    name: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the URL path of one object, of all in a namespace, or, without a namespace, of all in the cluster."""
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        place = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return "/".join(filter(None, (root + place, self.plural, name, subresource)))

    @property
    def group(self) -> str:
        """The API group; empty for the core group."""
        return self.api_version.rpartition("/")[0]


WORKER: Final = Kind(API_VERSION, WORKER_KIND, WORKERS)
HYPHA_JOB: Final = Kind(API_VERSION, JOB_KIND, JOBS)
CONFIG_MAP: Final = Kind("v1", "ConfigMap", "configmaps")
POD: Final = Kind("v1", "Pod", "pods")
NODE: Final = Kind("v1", "Node", "nodes", namespaced=False)
SERVICE: Final = Kind("v1", "Service", "services")
SERVICE_ACCOUNT: Final = Kind("v1", "ServiceAccount", "serviceaccounts")
DEPLOYMENT: Final = Kind("apps/v1", "Deployment", "deployments")
JOB: Final = Kind("batch/v1", "Job", "jobs")
EVENT: Final = Kind("v1", "Event", "events")
NETWORK_POLICY: Final = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
POD_DISRUPTION_BUDGET: Final = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
ROLE: Final = Kind("rbac.authorization.k8s.io/v1", "Role", "roles")
ROLE_BINDING: Final = Kind("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings")
LEASE: Final = Kind("coordination.k8s.io/v1", "Lease", "leases")
RESOURCE_CLAIM_TEMPLATE: Final = Kind("resource.k8s.io/v1", "ResourceClaimTemplate", "resourceclaimtemplates")
RESOURCE_QUOTA: Final = Kind("v1", "ResourceQuota", "resourcequotas")
CERTIFICATE: Final = Kind("cert-manager.io/v1", "Certificate", "certificates")

_BY_NAME: Final = {(kind.api_version, kind.name): kind for kind in tuple(vars().values()) if isinstance(kind, Kind)}


def kind_of(manifest: Manifest) -> Kind:
    """Return the kind of a manifest; raises KeyError for a kind that is not listed here."""
    return _BY_NAME[manifest["apiVersion"], manifest["kind"]]
