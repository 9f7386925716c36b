"""The configuration of a job's bridge: node and operator write it as JSON, the bridge reads it."""

from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hypha_contracts.addresses import Cidr
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
    hub_endpoint: str | None = None  # default: $HF_ENDPOINT, else the public hub
    push_pollers: Annotated[int, Field(ge=1, le=48)] = 48  # pushes received at the same time; two of each sender
    waiting_pushes: Annotated[int, Field(ge=1)] = 64  # pushes that the executor has not taken; at the limit, peers wait
    pending_sends: Annotated[int, Field(ge=1)] = 64  # sends not yet delivered; at the limit, the bridge refuses more
    download_deadline_s: _Seconds = 60  # how long the bridge retries a server that does not answer
    send_deadline_s: _Seconds = 300  # how long the bridge retries a peer that does not take a file
    drain_s: _Seconds = 30  # how long sends may continue after the bridge is asked to stop

    def to_json(self) -> str:
        """Return the text that the bridge reads, with the keys that the launcher has set."""
        return self.model_dump_json(exclude_unset=True, exclude_none=True)
