"""Loads the identity of a worker, on any platform."""

import logging
from importlib.metadata import version
from typing import Final

from hypha_contracts.node_config import NodeConfig
from hypha_network.identity import Identity

logger = logging.getLogger(__name__)

VERSION: Final = version("hypha-worker")


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
