"""The gossip message in which a scheduler requests workers."""

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import Field

from hypha_messages import cbor
from hypha_messages.job import ExecutorClass, ExecutorDescriptor
from hypha_messages.protocol import validate
from hypha_messages.types import Amount, Message, Resources, SystemTime, Uuid

TOPIC: Final = "hypha/worker"
"""The reference implementation's topic. Its nodes can decode only the requests of its own executor classes."""

INFERENCE_TOPIC: Final = "hypha/worker/inference"
"""Carries the requests for inference, which is an extension of this project."""

TOPICS: Final[Mapping[ExecutorClass, str]] = {
    "train": TOPIC,
    "aggregate": TOPIC,
    "inference": INFERENCE_TOPIC,
}
"""The topic of the requests for each executor class."""


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


def topic_of(spec: WorkerSpec) -> str:
    """Return the topic of a request for such workers; DecodeError if it names executors of several topics."""
    topics = {TOPICS[descriptor.class_] for descriptor in spec.executor} or {TOPIC}
    if len(topics) > 1:
        raise cbor.DecodeError("a request for inference names no executors of other classes")
    return topics.pop()


def encode(request: RequestWorker) -> bytes:
    """Return the gossip message's bytes."""
    return cbor.dumps_shortest(request.model_dump())


def decode(data: bytes) -> RequestWorker:
    """Return a request on the reference implementation's topic; DecodeError if the bytes do not encode one."""
    return _decode(TOPIC, data)


def decode_inference(data: bytes) -> RequestWorker:
    """Return a request on the topic of inference; DecodeError if the bytes do not encode one."""
    return _decode(INFERENCE_TOPIC, data)


DECODERS: Final = {TOPIC: decode, INFERENCE_TOPIC: decode_inference}
"""The decoder of each topic. It refuses what belongs on the other one, so that no node forwards that."""


def _decode(topic: str, data: bytes) -> RequestWorker:
    request = validate(RequestWorker, cbor.loads(data))
    if topic_of(request.spec) != topic:
        raise cbor.DecodeError(f"a request for {request.spec.executor[0]} does not belong on {topic}")
    return request
