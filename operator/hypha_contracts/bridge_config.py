"""The configuration of a job's bridge: node and operator write it as JSON, the bridge reads it."""

from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hypha_contracts.addresses import Block, Cidr, opened_blocks, reachable_blocks
from hypha_contracts.proxies import Proxies
from hypha_messages.types import PeerId

CONFIG_VARIABLE: Final = "HYPHA_BRIDGE_CONFIG"
"""The environment variable that holds the configuration where the bridge gets no file."""

_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ConnectorConfig(_Section):
    """How the bridge reaches the node's connector API: through a Unix socket, or over TLS with a known peer id."""

    uds: Path | None = None
    url: Annotated[str, Field(pattern=r"^https://[^/@]+$")] | None = None
    peer_id: PeerId | None = None  # with url: the bridge accepts no other node
    token_file: Path  # read again for every request, because a token may be rotated
    deadline_s: _Seconds = 60  # how long the bridge retries while the node, or a peer behind it, does not answer

    @model_validator(mode="after")
    def _names_one_way(self) -> Self:
        if (self.uds is None) == (self.url is None) or (self.url is None) != (self.peer_id is None):
            raise ValueError("write either uds, or url and peer_id")
        return self


class LentToken(_Section):
    """A token of the worker's owner for the model hub, which the bridge uses for some repositories alone."""

    file: Path  # read again for every download, because a token may be rotated
    repositories: frozenset[str]  # owner/name


class CacheConfig(_Section):
    """A directory of public files of the model hub, which the bridges of a worker's jobs share."""

    directory: Path
    max_bytes: Annotated[int, Field(gt=0)]  # of all files together


class OpenedNetwork(_Section):
    """A network from which a job may download although it is not public."""

    cidr: Cidr
    excluded: list[Cidr] = []  # networks within it
    ports: list[tuple[int, int]] = []  # first and last port of each range; empty: all

    @property
    def blocks(self) -> list[Block]:
        """The network as blocks of addresses."""
        return opened_blocks(self.cidr, self.excluded, [range(first, last + 1) for first, last in self.ports])


class BridgeConfig(_Section):
    """Everything that a bridge needs to serve one job."""

    job_file: Path
    work_dir: Path
    socket: Path
    connector: ConnectorConfig
    state_dir: Path  # for staging and spools, on work_dir's file system
    storage_bytes: Annotated[int, Field(gt=0)] | None = None  # of work_dir and state_dir together; None: unlimited
    read_ahead: Annotated[int, Field(ge=0, le=64)] = 1  # slices fetched before the executor asks for them
    allow_private_addresses: bool = False  # for `uri` references; the configured hub is always allowed
    exclude_cidr: list[Cidr] = []  # networks that are never allowed for `uri` references
    opened: list[OpenedNetwork] = []  # networks that are allowed all the same
    hub_endpoint: str | None = None  # default: $HF_ENDPOINT, else the public hub
    hub_token: LentToken | None = None  # for references that bring no token of their own
    cache: CacheConfig | None = None  # for downloads from the hub without a token
    proxy: Proxies | None = None  # default: the hub's client uses those of the environment, and `uri` references none
    trust_pem: Path | None = None  # authorities that are trusted for downloads besides the public ones
    push_pollers: Annotated[int, Field(ge=1, le=48)] = 48  # pushes received at the same time; two of each sender
    waiting_pushes: Annotated[int, Field(ge=1)] = 64  # pushes that the executor has not taken; at the limit, peers wait
    pending_sends: Annotated[int, Field(ge=1)] = 64  # sends not yet delivered; at the limit, the bridge refuses more
    download_deadline_s: _Seconds = 60  # how long the bridge retries a server that does not answer
    send_deadline_s: _Seconds = 300  # how long the bridge retries a peer that does not take a file
    drain_s: _Seconds = 30  # how long sends may continue after the bridge is asked to stop

    @property
    def reachable(self) -> list[Block]:
        """The addresses from which `uri` references may be fetched."""
        opened = [block for network in self.opened for block in network.blocks]
        return [*reachable_blocks(self.exclude_cidr, allow_private_addresses=self.allow_private_addresses), *opened]

    def to_json(self) -> str:
        """Return the text that the bridge reads, with the keys that the launcher has set."""
        return self.model_dump_json(exclude_unset=True, exclude_none=True)
