"""Why QUIC connections end, in the words of this node, and the alerts of TLS that notify peers of it."""

from typing import Final

from qh3.quic.events import ConnectionTerminated
from qh3.quic.packet import QuicErrorCode
from qh3.tls import AlertDescription

from hypha_contracts.text import escaped
from hypha_network.wire.certificate_path import PathRefusedError

_MAX_REASON_CHARS: Final = 200
_IDLE: Final = "Idle timeout"
_ALERT_OF: Final = {
    10: AlertDescription.certificate_expired,
    18: AlertDescription.unknown_ca,
    19: AlertDescription.unknown_ca,
    20: AlertDescription.unknown_ca,
    21: AlertDescription.unknown_ca,
}
"""By OpenSSL's code for why it refuses a certificate. It is `bad_certificate` for all others."""
_ALERTS: Final[dict[int, str]] = {
    AlertDescription.certificate_required: "it requires a certificate and received none",
    AlertDescription.unknown_ca: "its trust bundle does not lead to our certificate",
    AlertDescription.certificate_revoked: "our certificate is on its revocation list",
    AlertDescription.certificate_expired: "it considers our certificate expired",
    AlertDescription.bad_certificate: "it does not accept our certificate",
    AlertDescription.certificate_unknown: "it does not accept our certificate",
    AlertDescription.decrypt_error: "it could not verify our certificate",
    AlertDescription.access_denied: "it denies this node access",
}


def alert_for(error: PathRefusedError) -> AlertDescription:
    """Return the alert that notifies a peer of why its certificates are refused."""
    return _ALERT_OF.get(error.code, AlertDescription.bad_certificate)


def end_reason(end: ConnectionTerminated, *, by_this_side: bool) -> str:
    """Return why a connection ended."""
    reason = escaped(end.reason_phrase, _MAX_REASON_CHARS)
    if by_this_side:
        return reason or "closed by this node"
    if reason == _IDLE:
        return "nothing arrived for too long"
    alert = end.error_code & 0xFF
    if end.error_code - alert == QuicErrorCode.CRYPTO_ERROR:
        return _ALERTS.get(alert) or f"TLS alert {alert}: {reason}"
    code = f" with error {end.error_code:#x}" if end.error_code else ""
    return f"the peer closed the connection{code}{': ' * bool(reason)}{reason}"
