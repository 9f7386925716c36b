"""The runtimes that a worker can have. A runtime is imported only when it is opened."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pkgutil import resolve_name
from typing import Final

from hypha_contracts.node_config import NodeConfig
from hypha_worker.runtimes.protocol import Platform, Reread

Open = Callable[[NodeConfig, Reread], AbstractAsyncContextManager[Platform]]

_RUNTIMES: Final = {
    "process": "hypha_worker.runtimes.process.host:open_host",
    "kubernetes": "hypha_worker.runtimes.kubernetes.cluster:open_cluster",
}


def open_platform(config: NodeConfig, reread: Reread) -> AbstractAsyncContextManager[Platform]:
    """Open the platform of the configured runtime.

    Raises:
        IdentityError: the certificate, key, trust bundle or revocation lists cannot be used.
        NodeError: the work directory, or the cluster, cannot be used.
    """
    open_: Open = resolve_name(_RUNTIMES[config.runtime])
    return open_(config, reread)
