"""The worker that is examined, and the facts that several checks share."""

import os
import socket
import struct
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from hypha_contracts.node_config import NodeConfig
from hypha_network.errors import IdentityError
from hypha_network.identity import Identity
from hypha_worker.config_file import ConfigError, Loaded
from hypha_worker.runtimes.process.host import process_config
from hypha_worker.runtimes.process.launch import ProcessConfig
from hypha_worker.state_dir import find_state_dir

_Fact = TypeVar("_Fact")
_CONNECT_S: Final = 2.0
_UCRED: Final = struct.Struct("3i")


class Unknown(Exception):  # noqa: N818 - not an error
    """Another check failed that this one depends on. The message says why this check was skipped."""


@dataclass(frozen=True)
class RunningNode:
    """A node that uses the work directory now. `pid` is None if it is in another process namespace."""

    pid: int | None

    @property
    def proc(self) -> Path:
        """Its directory in /proc, or that of this process."""
        return Path("/proc", str(self.pid) if self.pid else "self")


async def in_thread(function: Callable[[], _Fact]) -> _Fact:
    """Run a blocking function in a thread, which is abandoned when the caller is cancelled."""
    # mypy loses the keywords of this function, because they follow an unpacked tuple of types.
    return await trio.to_thread.run_sync(function, abandon_on_cancel=True)  # type: ignore[call-arg]


class Worker:
    """The worker that a configuration file describes.

    Args:
        path: the configuration file.
        loaded: its contents, or why it cannot be used.
        environ: the environment.
    """

    def __init__(self, path: Path, loaded: Loaded | ConfigError, environ: Mapping[str, str]) -> None:
        self.path = path
        self.loaded = loaded
        self.environ = environ
        self._facts: dict[object, Any] = {}
        self._locks: defaultdict[object, trio.Lock] = defaultdict(trio.Lock)

    @property
    def config(self) -> NodeConfig:
        """The configuration. Unknown if it cannot be used."""
        if isinstance(self.loaded, ConfigError):
            raise Unknown("the configuration cannot be used")
        return self.loaded.config

    @property
    def host_config(self) -> NodeConfig:
        """The configuration of a worker whose jobs are processes. Unknown for other workers."""
        if self.config.kubernetes is not None:
            raise Unknown("jobs are pods; the conditions of the HyphaWorker show their state")
        return self.config

    def identity(self) -> Identity:
        """Load the identity. IdentityError."""
        config = self.config
        return Identity.load(config.cert_pem, config.key_pem, config.trust_pem, config.crls_pem)

    def usable_identity(self) -> Identity:
        """Load the identity. Unknown if it cannot be used."""
        try:
            return self.identity()
        except IdentityError as error:
            raise Unknown("the certificate cannot be used") from error

    @property
    def process(self) -> ProcessConfig:
        """The configuration of the process runtime."""
        config = self.host_config
        try:
            peer_id = self.usable_identity().peer_id
        except Unknown:
            peer_id = ""
        return process_config(config, find_state_dir(config.work_dir, peer_id))

    async def fact(self, gather: Callable[["Worker"], Awaitable[_Fact]]) -> _Fact:
        """Return what a function finds out about this worker. Checks that share a fact gather it once."""
        async with self._locks[gather]:
            if gather not in self._facts:
                self._facts[gather] = await gather(self)
        found: _Fact = self._facts[gather]
        return found

    def running_node(self) -> RunningNode | None:
        """Return the node that listens on the socket of the connector API, or None.

        The connection is closed at once. Locking `node.lock` instead could keep a node from starting.
        """
        path = self.process.connector_socket
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_CONNECT_S)
            try:
                client.connect(os.fspath(path))
                pid, _, _ = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            except (OSError, ValueError):
                return None
        return RunningNode(pid or None)
