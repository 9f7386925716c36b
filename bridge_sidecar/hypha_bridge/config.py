"""The bridge's configuration (JSON), written by whoever launches the job."""

from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hypha_messages.job import JobSpec
from hypha_messages.types import PeerId

_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Model = TypeVar("_Model", bound=BaseModel)


class ConfigError(ValueError):
    """The configuration or the job file cannot be used; the text names file, key and what is wrong."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ConnectorConfig(_Section):
    """Where the node's connector API listens, a socket or an address, and how it knows this job."""

    uds: Path | None = None
    url: Annotated[str, Field(pattern=r"^https://[^/@]+$")] | None = None
    peer_id: PeerId | None = None  # with url: the node's, by whose key it is known
    token_file: Path  # read anew for every request: a token may be rotated
    deadline_s: _Seconds = 60  # how long a node that is away, or a peer behind it, is asked again

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.uds is None) == (self.url is None) or (self.url is None) != (self.peer_id is None):
            raise ValueError("write either uds, or url and peer_id")
        return self


class BridgeConfig(_Section):
    """All that a bridge knows."""

    job_file: Path
    work_dir: Path
    socket: Path
    connector: ConnectorConfig
    storage_bytes: Annotated[int, Field(gt=0)] | None = None  # of work_dir and state_dir together; None: unlimited
    read_ahead: Annotated[int, Field(ge=0, le=64)] = 1  # slices fetched before the executor asks for them
    allow_private_addresses: bool = False  # for `uri` references; the configured hub is always allowed
    state_dir: Path | None = None  # staging and spools, on work_dir's file system; default: `bridge` beside the file
    hub_endpoint: str | None = None  # default: $HF_ENDPOINT, else the public hub
    push_pollers: Annotated[int, Field(ge=1, le=64)] = 4  # pushes received at the same time
    waiting_pushes: Annotated[int, Field(ge=1)] = 64  # received and not yet taken by the executor; beyond, peers wait
    pending_sends: Annotated[int, Field(ge=1)] = 64  # accepted and not yet delivered; beyond, the executor is refused
    download_deadline_s: _Seconds = 60  # how long a server that does not answer is asked again
    send_deadline_s: _Seconds = 300  # how long a peer that does not take a file is asked again
    drain_s: _Seconds = 30  # how long sends in flight may take once the bridge is told to stop

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and validate the file; ConfigError."""
        config = _read(cls, path)
        return config.model_copy(update={"state_dir": config.state_dir or path.absolute().parent / "bridge"})

    @classmethod
    def parse(cls, text: str, source: str) -> Self:
        """Validate JSON text, for which there is no file; ConfigError names its source."""
        return _parse(cls, text, source)

    def job(self) -> JobSpec:
        """Read and validate the job file; ConfigError."""
        return _read(JobSpec, self.job_file)


def _read(model: type[_Model], path: Path) -> _Model:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    return _parse(model, text, str(path))


def _parse(model: type[_Model], text: str | bytes, source: str) -> _Model:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'all'}: {e['msg']}" for e in error.errors()[:5])
        raise ConfigError(f"{source}: {reasons}") from error
