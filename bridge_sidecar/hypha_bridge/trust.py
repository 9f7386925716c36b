"""The authorities that downloads trust: those of the system and those of the worker's owner."""

import codecs
import os
import ssl
from pathlib import Path
from typing import Final

import certifi

from hypha_bridge.config import ConfigError

_UNTRUSTED: Final = "CERTIFICATE_VERIFY_FAILED"
_FILE: Final = "authorities.pem"


def write_authorities(trust_pem: Path | None, directory: Path) -> Path:
    """Return the file of all authorities: that of SSL_CERT_FILE or the public ones, or one that the function writes.

    Raises:
        ConfigError: `trust_pem` cannot be read, or holds no certificates.
    """
    public = Path(os.environ.get("SSL_CERT_FILE") or certifi.where())
    if trust_pem is None:
        return public
    try:
        own = trust_pem.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise ConfigError(f"trust_pem {trust_pem}: {error.strerror}. Name a file with certificates (PEM).") from error
    try:  # the library takes ASCII only, but comments may have any bytes
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=own.decode("ascii", "backslashreplace"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"trust_pem {trust_pem} holds no certificates. Write them in PEM.") from error
    file = directory / _FILE
    file.write_bytes(public.read_bytes() + b"\n" + own)
    return file


def why_untrusted(error: BaseException | None) -> str | None:
    """Return why a server's certificate is not trusted, with the remedy, if that caused an error."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if _UNTRUSTED in str(error):
            return (
                "the certificate of the server, or of a proxy that intercepts TLS, is not trusted. The worker's owner "
                "can name its authority with jobs.trustBundle, or on a host with trust_pem in the table jobs"
            )
        error = error.__cause__ or error.__context__
    return None
