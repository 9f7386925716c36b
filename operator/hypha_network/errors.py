"""The errors of this package. Errors of the libraries below are translated into these where they occur."""


class HyphaNetworkError(Exception):
    """Base of all errors of this package."""


class IdentityError(HyphaNetworkError):
    """A certificate, key, trust bundle or revocation list is unusable. The message names it, the cause and a remedy."""


class NetworkError(HyphaNetworkError):
    """The network or a peer failed."""


class DialError(NetworkError):
    """Connecting to an address failed."""


class HandshakeError(DialError):
    """The TLS handshake failed: one side refused the other, or the peer did not complete it in time."""


class ConnectionBroken(NetworkError):  # noqa: N818 - the connection's state, not our mistake
    """A connection failed, or the peer closed it while this node still needed it."""


class PeerUnreachable(NetworkError):  # noqa: N818
    """There is no connection to the peer, and none can be made to any known address of it."""


class OnlyRelayed(PeerUnreachable):
    """Only a relay leads to the peer, and it limits connections, so this node sends no bulk data over it."""


class RequestTimeout(NetworkError):  # noqa: N818
    """The peer did not answer in time."""


class RemoteRefused(NetworkError):  # noqa: N818
    """The peer does not speak the protocol, or its answer is malformed."""


class StreamReset(NetworkError):  # noqa: N818
    """A stream ended early, because the peer reset it or the connection ended."""


class ConnectionLost(StreamReset):
    """A stream ended early with its connection. What the peer has processed by then is unknown."""


class NetworkClosed(NetworkError):  # noqa: N818
    """This node is closing its network."""
