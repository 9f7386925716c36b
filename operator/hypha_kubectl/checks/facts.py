"""The cluster that is examined, and the facts that several checks share."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, Final, TypeVar

from hypha_contracts.kinds import DEPLOYMENT, HYPHA_JOB, LEASE, NODE, WORKER, Kind, Manifest
from hypha_contracts.kubernetes_errors import Forbidden, NotFound
from hypha_contracts.names import GROUP
from hypha_kubectl.access.api import Api, at_once
from hypha_kubectl.views.operators import COMPONENT_SELECTOR, Operator, operators_of

NAMESPACE: Final = Kind("v1", "Namespace", "namespaces", namespaced=False)
STORAGE_CLASS: Final = Kind("storage.k8s.io/v1", "StorageClass", "storageclasses", namespaced=False)
DEVICE_CLASS: Final = Kind("resource.k8s.io/v1", "DeviceClass", "deviceclasses", namespaced=False)
RUNTIME_CLASS: Final = Kind("node.k8s.io/v1", "RuntimeClass", "runtimeclasses", namespaced=False)
KUEUE: Final = "kueue.x-k8s.io"
DEFINITION: Final = Kind(
    "apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False
)
_REVIEWS: Final = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"

_Fact = TypeVar("_Fact")
Right = tuple[str, str, str, str | None]
"""A verb, an API group, a resource, and a namespace or None for the cluster."""


class Unknown(Exception):  # noqa: N818 - not an error
    """Something could not be found out. The message says why the check was skipped."""


class Cluster:
    """What checks ask about a cluster. Facts are asked for once, and checks may run in threads.

    Args:
        api: the API server.
        namespace: the namespace to look at; None for all.
        before: whether to look at what must be right before an installation.
    """

    def __init__(self, api: Api, namespace: str | None, *, before: bool) -> None:
        self.api, self.namespace, self.before = api, namespace, before
        self._facts: dict[object, Any] = {}
        self._locks: defaultdict[object, Lock] = defaultdict(Lock)

    def _fact(self, key: object, ask: Callable[[], _Fact]) -> _Fact:
        """Return a fact, or raise Unknown if this user may not know it."""
        with self._locks[key]:
            if key not in self._facts:
                try:
                    self._facts[key] = ask()
                except Forbidden as error:
                    self._facts[key] = Unknown(f"you lack a right: {error.message}")
            found: _Fact | Unknown = self._facts[key]
        if isinstance(found, Unknown):
            raise found
        return found

    def objects(self, kind: Kind, namespace: str | None = None, **selectors: str) -> list[Manifest]:
        """Return all objects of a kind; none if the cluster does not serve it. Unknown."""

        def ask() -> list[Manifest]:
            try:
                return self.api.find(kind, namespace, **selectors)
            except NotFound:
                return []

        return self._fact((kind, namespace, *selectors.items()), ask)

    def object(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """Return an object, or None. Unknown."""

        def ask() -> Manifest | None:
            try:
                return self.api.get(kind, namespace, name)
            except NotFound:
                return None

        return self._fact((kind, namespace, name), ask)

    def read(self, path: str) -> Any:
        """Return what a path of the API holds, or None if there is nothing. Unknown."""

        def ask() -> Any:
            try:
                return self.api.read(path)
            except NotFound:
                return None

        return self._fact(path, ask)

    def served(self, group: str, name: str, plural: str) -> Kind | None:
        """Return a kind of a group in the version that the cluster prefers, or None if it does not serve the group."""
        found = self.read(f"/apis/{group}")
        return Kind(found["preferredVersion"]["groupVersion"], name, plural) if found else None

    @property
    def nodes(self) -> list[Manifest]:
        """The nodes. Unknown."""
        return self.objects(NODE)

    @property
    def is_installed(self) -> bool:
        """Whether the cluster serves our resources."""
        return self.read(f"/apis/{GROUP}") is not None

    @property
    def workers(self) -> list[Manifest]:
        """The HyphaWorkers of the namespace. Unknown."""
        self._require_definitions()
        return self.objects(WORKER, self.namespace)

    @property
    def jobs(self) -> list[Manifest]:
        """The HyphaJobs of the namespace. Unknown."""
        self._require_definitions()
        return self.objects(HYPHA_JOB, self.namespace)

    def _require_definitions(self) -> None:
        if not self.is_installed:
            raise Unknown("the definitions are not installed")

    @property
    def operators(self) -> list[Operator]:
        """The operators that this user may see: of the cluster, or else of the namespace. Unknown."""
        try:
            found = self.objects(DEPLOYMENT, labelSelector=COMPONENT_SELECTOR)
        except Unknown:
            if self.namespace is None:
                raise
            found = self.objects(DEPLOYMENT, self.namespace, labelSelector=COMPONENT_SELECTOR)
        return operators_of(found)

    def lease(self, place: tuple[str, str]) -> Manifest | None:
        """Return a Lease, or None. Unknown."""
        return self.object(LEASE, *place)

    def lacking(self, rights: Sequence[Right]) -> list[Right]:
        """Return the rights that this user does not have."""

        def allowed(right: Right) -> bool:
            verb, group, resource, namespace = right
            attributes = {"verb": verb, "group": group, "resource": resource, "namespace": namespace or ""}
            review = self.api.create(
                _REVIEWS,
                {
                    "apiVersion": "authorization.k8s.io/v1",
                    "kind": "SelfSubjectAccessReview",
                    "spec": {"resourceAttributes": attributes},
                },
            )
            return bool(review["status"]["allowed"])

        answers = at_once(*(lambda right=right: allowed(right) for right in rights))
        return [right for right, answer in zip(rights, answers, strict=True) if not answer]
