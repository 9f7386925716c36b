"""The gossip that waits to be sent to a peer, bounded in bytes. Sends nothing itself."""

import trio
from libp2p.pubsub.pb import rpc_pb2

from hypha_network.connection import Connection, best_of
from hypha_network.wire.multistream import prefixed

MAX_QUEUED_BYTES = 1024 * 1024
"""Maximum size of the messages that wait for one slow connection; more are dropped."""


class Queue:
    """The messages that wait to be sent on one stream."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size_bytes = 0
        self.filled = trio.Event()
        """Set while there is a message to take."""

    def put(self, data: bytes) -> bool:
        """Add encoded messages; False if they are too much."""
        if self._size_bytes + len(data) > MAX_QUEUED_BYTES:
            return False
        self._parts.append(data)
        self._size_bytes += len(data)
        self.filled.set()
        return True

    def take(self) -> bytes:
        """Remove and return all messages."""
        data = b"".join(self._parts)
        self._parts.clear()
        self._size_bytes = 0
        self.filled = trio.Event()
        return data


class Outbox:
    """The messages for one peer, which may have several connections, and a stream for gossip on each of them.

    A peer's subscription may arrive before this node has opened a stream to it. Messages for the peer wait until then.
    """

    def __init__(self) -> None:
        self._unopened = Queue()
        self._queues: dict[Connection, Queue] = {}

    def open(self, connection: Connection, subscriptions: rpc_pb2.RPC) -> Queue:
        """Return the queue of a new stream. It begins with all subscriptions of this node."""
        queue = self._queues[connection] = Queue()
        if subscriptions.subscriptions:
            queue.put(_encode(subscriptions))
        if self._unopened.filled.is_set():
            queue.put(self._unopened.take())
        return queue

    def close(self, connection: Connection) -> None:
        """Drop the queue of a stream that has ended."""
        del self._queues[connection]

    def put(self, rpc: rpc_pb2.RPC) -> bool:
        """Queue a message on the best connection; False if too much waits there."""
        best = best_of(self._queues)
        return (self._queues[best] if best else self._unopened).put(_encode(rpc))

    def put_subscriptions(self, rpc: rpc_pb2.RPC) -> bool:
        """Queue changed subscriptions on every open stream; False if too much waits on one of them.

        Streams do not keep the order among each other. The latest subscriptions come last on
        each, so the peer ends with them.
        """
        data = _encode(rpc)
        refused = [queue for queue in self._queues.values() if not queue.put(data)]
        return not refused


def _encode(rpc: rpc_pb2.RPC) -> bytes:
    return prefixed(rpc.SerializeToString())
