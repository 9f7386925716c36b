"""The gossip message in which a scheduler requests workers."""

from typing import Annotated, Final

from pydantic import Field

from hypha_messages import cbor
from hypha_messages.job import ExecutorDescriptor
from hypha_messages.protocol import validate
from hypha_messages.types import Amount, Message, Resources, SystemTime, Uuid

TOPIC: Final = "hypha/worker"


class WorkerSpec(Message):
    """The resources that a worker must have at least, and the executors that it must support."""

    resources: Resources
    executor: Annotated[list[ExecutorDescriptor], Field(max_length=64, fail_fast=True)]


class RequestWorker(Message):
    """A scheduler's request for workers: requirements, deadline for offers, and bid."""

    id: Uuid
    spec: WorkerSpec
    timeout: SystemTime
    bid: Amount


def encode(request: RequestWorker) -> bytes:
    """Return the gossip message's bytes."""
    return cbor.dumps_shortest(request.model_dump())


def decode(data: bytes) -> RequestWorker:
    """Return the request; DecodeError if the bytes do not encode one."""
    return validate(RequestWorker, cbor.loads(data))
