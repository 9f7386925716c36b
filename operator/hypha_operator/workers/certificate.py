"""Build the Certificate of a worker that uses a cert-manager issuer."""

from hypha_contracts.kinds import CERTIFICATE, Manifest
from hypha_contracts.names import GROUP, identity_secret
from hypha_operator.machinery.manifests import child
from hypha_resources.worker import HyphaWorkerSpec


def certificate(hypha_worker: Manifest, spec: HyphaWorkerSpec) -> Manifest | None:
    """Return the Certificate, if the spec names an issuer. Renewals keep the key, because it determines the peer id."""
    issuer = spec.identity.issuer_ref
    if issuer is None:
        return None
    metadata = hypha_worker["metadata"]
    content = {
        "secretName": spec.identity.secret_name or identity_secret(metadata["name"]),
        "issuerRef": {"name": issuer.name, "kind": issuer.kind, "group": issuer.group},
        "privateKey": {"algorithm": "Ed25519", "encoding": "PKCS8", "rotationPolicy": "Never"},
        "usages": ["digital signature", "client auth", "server auth"],
        # The reference expects this name of every peer that it dials.
        "ipAddresses": ["0.0.0.0"],  # noqa: S104 - nothing binds to it
        "dnsNames": [f"{metadata['name']}.{metadata['namespace']}.{GROUP}"],
    }
    return child(hypha_worker, CERTIFICATE, identity_secret(metadata["name"]), spec=content)
