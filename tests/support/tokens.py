"""Tokens of pods as an API server makes them, and the keys that it publishes."""

import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

USER, AUDIENCE = "system:serviceaccount:ns:w-job", "hypha-connector"
KEYS = {name: ec.derive_private_key(number, ec.SECP256R1()) for number, name in enumerate(("old", "new", "other"), 7)}


def published(*names: str) -> dict[str, Any]:
    """Return these keys as a JSON Web Key Set."""
    described = {"use": "sig", "alg": "ES256"}
    keys = [json.loads(ECAlgorithm.to_jwk(KEYS[name].public_key())) | described | {"kid": name} for name in names]
    return {"keys": keys}


def token(key: str = "old", *, kid: str | None = None, valid_s: float = 3600, **claims: Any) -> str:
    """Return a token that a key signed. Claims that are None are left out."""
    now = int(time.time())
    content = {
        "iss": "https://kubernetes.default.svc",
        "sub": USER,
        "aud": [AUDIENCE],
        "iat": now,
        "nbf": now,
        "exp": now + valid_s,
        "kubernetes.io": {"namespace": "ns", "pod": {"name": "pod", "uid": "uid"}, "serviceaccount": {"name": "w-job"}},
    } | claims
    content = {name: value for name, value in content.items() if value is not None}
    return jwt.encode(content, KEYS[key], "ES256", headers={"kid": kid or key})
