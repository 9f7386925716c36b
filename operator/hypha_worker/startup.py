"""Loads the identity of a worker and prepares its private directory, on any platform."""

import logging
import os
import stat
from importlib.metadata import version
from pathlib import Path
from typing import Final

from hypha_contracts.node_config import NodeConfig
from hypha_network.identity import Identity
from hypha_worker.errors import NodeError

logger = logging.getLogger(__name__)

VERSION: Final = version("hypha-worker")
LEDGER_FILE: Final = "leases.json"
"""The file of the ledger, in the directory that `prepare_state_dir` returns."""


def load_identity(config: NodeConfig, *, crls_optional: bool = False) -> Identity:
    """Load the configured identity and log its peer id. `crls_optional` lets the revocation lists appear later.

    Raises:
        IdentityError: the certificate, key, trust bundle or revocation lists cannot be used.
    """
    identity = Identity.load(
        config.cert_pem, config.key_pem, config.trust_pem, config.crls_pem, crls_optional=crls_optional
    )
    logger.info(
        "hypha-worker %s, peer id %s, certificate valid until %s", VERSION, identity.peer_id, identity.not_valid_after
    )
    return identity


def prepare_state_dir(work_dir: Path, peer_id: str) -> Path:
    """Make and return the private directory for jobs and state. NodeError if it cannot be used.

    In a directory that every user may write to, such as /tmp, the node uses a private directory of its own.
    """
    try:
        work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not work_dir.stat().st_mode & stat.S_IWOTH:
            return work_dir
        private = work_dir / f"hypha-worker-{peer_id[-8:]}"
        private.mkdir(mode=0o700, exist_ok=True)
        found = private.lstat()
    except OSError as error:
        raise NodeError(
            f"work_dir {work_dir}: {error.strerror}. Choose a directory that this user may write to."
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise NodeError(f"{private}: not a private directory of this user. Remove it or choose another work_dir.")
    return private
