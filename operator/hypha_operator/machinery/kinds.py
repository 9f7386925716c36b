"""The kinds of objects that the operator knows, and the objects that it reconciles."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from hypha_contracts.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    HYPHA_JOB,
    JOB,
    NETWORK_POLICY,
    POD,
    POD_DISRUPTION_BUDGET,
    ROLE,
    ROLE_BINDING,
    SERVICE,
    SERVICE_ACCOUNT,
    WORKER,
    Kind,
)
from hypha_contracts.names import WORKER_LABEL

CHILDREN: Final = (
    CONFIG_MAP,
    SERVICE_ACCOUNT,
    SERVICE,
    DEPLOYMENT,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    ROLE,
    ROLE_BINDING,
    JOB,
    POD,
)
"""Kinds of which the operator knows only the objects that have a worker's label."""
KNOWN: Final = (WORKER, HYPHA_JOB, *CHILDREN)
LISTED: Final = frozenset({POD_DISRUPTION_BUDGET})
"""Kinds that the operator lists every two minutes in place of a watch, because a status changes with every pod."""
SELECTORS: Final[Mapping[Kind, dict[str, str]]] = {
    kind: {"labelSelector": WORKER_LABEL} if kind in CHILDREN else {} for kind in KNOWN
}


class Key(NamedTuple):
    """An object to reconcile: a HyphaWorker or a HyphaJob."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.name} {self.namespace}/{self.name}"
