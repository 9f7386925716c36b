"""`/hypha-health/0.0.1`: ask a node whether it is ready."""

from typing import Final

from hypha_messages.protocol import Plain, Protocol
from hypha_messages.types import Message


class HealthRequest(Message):
    """Asks a node whether it is ready."""


class HealthResponse(Message):
    """Whether the node listens and has joined the network."""

    healthy: bool


HEALTH: Final = Protocol("/hypha-health/0.0.1", request=Plain(HealthRequest), response=Plain(HealthResponse))
