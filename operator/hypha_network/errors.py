"""What can go wrong on the network. Foreign exceptions are translated into these where they enter.

```
HyphaNetworkError
├── IdentityError         a certificate, key, trust bundle or revocation list cannot be used
└── NetworkError          the network or a peer did not do what was asked
    ├── DialError         no connection came about at this address
    │   └── HandshakeError    ... because one side refused the other
    ├── PeerUnreachable   no connection to this peer, and no address that leads to it
    ├── RequestTimeout    the peer did not answer in time
    ├── RemoteRefused     the peer does not speak the protocol, or answered what is no answer
    ├── StreamReset       the peer or the connection ended a stream before its end
    │   └── ConnectionLost    ... the connection did
    └── NetworkClosed     this node's own network is closing
```
"""


class HyphaNetworkError(Exception):
    """Base of all errors of this package."""


class IdentityError(HyphaNetworkError):
    """A certificate, key, trust bundle or revocation list cannot be used; says which, why, and what to do."""


class NetworkError(HyphaNetworkError):
    """The network or a peer did not do what was asked."""


class DialError(NetworkError):
    """No connection came about at this address."""


class HandshakeError(DialError):
    """The TLS handshake failed: one side refused the other, or the peer did not complete it in time."""


class PeerUnreachable(NetworkError):  # noqa: N818 - the peer's state, not our mistake
    """There is no connection to this peer, and no address that leads to it."""


class RequestTimeout(NetworkError):  # noqa: N818
    """The peer did not answer in time."""


class RemoteRefused(NetworkError):  # noqa: N818
    """The peer does not speak the protocol, or answered what is no answer."""


class ConnectionBroken(NetworkError):  # noqa: N818
    """The connection failed, or the peer closed it while this node still needed it."""


class StreamReset(NetworkError):  # noqa: N818
    """The peer or the connection ended a stream before its end."""


class ConnectionLost(StreamReset):
    """The connection ended a stream before its end: nobody knows what the peer has made of it."""


class NetworkClosed(NetworkError):  # noqa: N818
    """This node's own network is closing."""
