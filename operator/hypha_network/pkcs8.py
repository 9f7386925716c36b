"""Ed25519 private keys in PKCS#8: version 1 (RFC 5208; cert-manager) and version 2 (RFC 5958; hypha-certutil).

Neither OpenSSL 3.0 nor `cryptography` reads version 2, which appends the public key. So this module extracts the seed.
"""

import base64
import binascii
import re

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_SEED_BYTES = 32
_BEGIN = re.compile(rb"-----BEGIN ([A-Z0-9 ]{0,40}PRIVATE KEY)-----\s")
_ED25519_OID = bytes.fromhex("06032b6570")
_SEQUENCE, _INTEGER, _OCTET_STRING, _ATTRIBUTES, _PUBLIC_KEY = 0x30, 0x02, 0x04, 0xA0, 0x81
_REMEDY = "make one with `openssl genpkey -algorithm ed25519`"
_V1_PREFIX = bytes.fromhex("302e020100300506032b657004220420")


def seed_from_pem(pem: bytes) -> bytes:
    """Return the 32-byte seed of the first private key in a PEM text; ValueError names the cause and a remedy."""
    found = _BEGIN.search(pem)
    end = pem.find(b"-----END %b-----" % found[1], found.end()) if found else -1
    if found is None or end < 0:
        raise ValueError('it holds no private key; expected a PEM block "PRIVATE KEY" (PKCS#8, Ed25519)')
    label = found[1].decode()
    if label == "ENCRYPTED PRIVATE KEY":
        raise ValueError("the private key is encrypted; decrypt it with `openssl pkcs8 -in FILE -out NEW_FILE`")
    if label != "PRIVATE KEY":
        raise ValueError(f'a PEM block "{label}" is not an Ed25519 key in PKCS#8; {_REMEDY}')
    try:
        der = base64.b64decode(b"".join(pem[found.end() : end].split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"the private key is not base64: {error}") from error
    return seed_from_der(der)


def seed_from_der(der: bytes) -> bytes:
    """Return the 32-byte seed of a PKCS#8 key of either version; ValueError if it is malformed or not Ed25519."""
    body, rest = _take(der, _SEQUENCE)
    version, body = _take(body, _INTEGER)
    if rest or version not in (b"\x00", b"\x01"):
        raise ValueError("the private key is not PKCS#8 of version 1 or 2")
    algorithm, body = _take(body, _SEQUENCE)
    if algorithm != _ED25519_OID:
        raise ValueError(f"the private key is not Ed25519; {_REMEDY}")
    wrapped, body = _take(body, _OCTET_STRING)
    seed, rest = _take(wrapped, _OCTET_STRING)
    if rest or len(seed) != _SEED_BYTES:
        raise ValueError(f"an Ed25519 private key has {_SEED_BYTES} bytes, this one has {len(seed)}")
    if body[:1] == bytes([_ATTRIBUTES]):
        _, body = _take(body, _ATTRIBUTES)
    if version == b"\x01" and body:
        bits, body = _take(body, _PUBLIC_KEY)
        if bits != b"\x00" + Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw():
            raise ValueError("the public key inside the private key file belongs to another key")
    if body:
        raise ValueError("the private key has data at its end that PKCS#8 does not allow")
    return seed


def seed_to_pem(seed: bytes) -> bytes:
    """Return a seed as PKCS#8 version 1, which OpenSSL reads."""
    return b"-----BEGIN PRIVATE KEY-----\n" + base64.encodebytes(_V1_PREFIX + seed) + b"-----END PRIVATE KEY-----\n"


def _take(der: bytes, tag: int) -> tuple[bytes, bytes]:
    """Return the content of the first DER element, and the bytes after it."""
    if len(der) < 2 or der[0] != tag:
        raise ValueError("the private key is not PKCS#8 in DER")
    length, start = der[1], 2
    if length >= 0x80:  # long form; a key needs at most one length byte, attributes two
        count = length & 0x7F
        start += count
        if not 1 <= count <= 2 or len(der) < start:
            raise ValueError("the private key is not PKCS#8 in DER")
        length = int.from_bytes(der[2:start])
    if len(der) < start + length:
        raise ValueError("the private key is truncated")
    return der[start : start + length], der[start + length :]
