"""The parts of a HyphaWorker that say on which nodes its jobs run, and for which schedulers."""

from typing import Annotated

from pydantic import ConfigDict, Field

from hypha_contracts.market_config import MAX_LISTED_SCHEDULERS, MAX_NODE_KINDS, MAX_NODES_OF_KIND, Share
from hypha_resources.addresses import PeerIdItem
from hypha_resources.common import Quantity, Schema, rules


class NodeKind(Schema):
    """Nodes that are alike."""

    count: Annotated[int, Field(ge=1, le=MAX_NODES_OF_KIND)] = Field(description="Number of nodes of this kind.")
    cpu: Quantity = Field(description="Cores of one node that jobs may use.")
    memory: Quantity = Field(description="Memory of one node that jobs may use.")
    storage: Quantity = Field(description="Disk space of one node that jobs may use.")
    gpu: Annotated[int, Field(ge=0, le=1024)] = Field(default=0, description="Number of GPUs of one node.")


class PerJob(Schema):
    """The most that one job may have. Default: what fits on a node, or without nodes everything."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.cpu) || has(self.memory) || has(self.storage) || has(self.gpu)",
                "name at least one of cpu, memory, storage and gpu",
            ),
        )
    )

    cpu: Quantity | None = Field(default=None, description="The most cores of one job.")
    memory: Quantity | None = Field(default=None, description="The most memory of one job.")
    storage: Quantity | None = Field(default=None, description="The most disk space of one job.")
    gpu: Annotated[int, Field(ge=0, le=1024)] | None = Field(default=None, description="The most GPUs of one job.")


NodeKinds = Annotated[list[NodeKind], Field(max_length=MAX_NODE_KINDS)]
_PeerIds = Annotated[list[PeerIdItem], Field(max_length=MAX_LISTED_SCHEDULERS)]


class Schedulers(Schema):
    """Which schedulers the worker serves. A change applies to the running node."""

    allow: _PeerIds = Field(
        default=[], description="Peer ids of the only schedulers that get offers. Default: all schedulers do."
    )
    block: _PeerIds = Field(
        default=[],
        description="Peer ids of schedulers that get no offers. Leases that they hold go on; to end a job, set "
        "spec.cancel of its HyphaJob.",
    )
    max_share: Share = Field(
        default=1.0,
        description="The most of each resource that the leases of one scheduler may reserve, such as 0.5 for half. A "
        "scheduler at its share waits, and others go first.",
    )
