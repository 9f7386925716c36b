"""The cluster's roles for the two resources, which belong to their definitions.

Kubernetes adds their rules to its own roles view, edit and admin. With them, an account that has only `admin` in a
namespace can install an operator there: the API server lets it grant exactly what it has itself.
"""

from typing import Any, Final

from hypha_contracts.names import GROUP, JOBS, WORKERS

_AGGREGATE: Final = "rbac.authorization.k8s.io/aggregate-to"
_BOTH: Final = (WORKERS, JOBS)


def roles() -> list[dict[str, Any]]:
    """Return the ClusterRoles."""
    return [
        _role("view", ("view",), _rule(_BOTH, "get", "list", "watch")),
        _role(
            "edit",
            ("edit", "admin"),
            _rule((WORKERS,), "create", "update", "patch", "delete", "deletecollection"),
            _rule((JOBS,), "patch", "delete"),
        ),
        _role(
            "admin",
            ("admin",),
            _rule((JOBS,), "create"),
            _rule(tuple(f"{plural}/status" for plural in _BOTH), "patch"),
            _rule(tuple(f"{plural}/finalizers" for plural in _BOTH), "update"),
            _rule(("resourceclaimtemplates",), "create", group="resource.k8s.io"),
        ),
    ]


def _role(name: str, into: tuple[str, ...], *rules: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": f"hypha-{name}", "labels": {f"{_AGGREGATE}-{role}": "true" for role in into}}
    kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole"}
    return {**kind, "metadata": metadata, "rules": list(rules)}


def _rule(resources: tuple[str, ...], *verbs: str, group: str = GROUP) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}
