"""A request/response protocol as a value: its id, and how its two bodies are encoded."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from hypha_messages import cbor
from hypha_messages.validation import MAX_PROBLEM_CHARACTERS, describe

M = TypeVar("M", bound=BaseModel)
Request = TypeVar("Request", bound=BaseModel)
Response = TypeVar("Response", bound=BaseModel)


class Body(Generic[M]):
    """One direction of a protocol: encodes messages to CBOR and decodes them."""

    def encode(self, message: M) -> bytes:
        """Return the message's bytes."""
        raise NotImplementedError

    def decode(self, data: bytes) -> M:
        """Return the message; DecodeError if the bytes do not encode one."""
        raise NotImplementedError


@dataclass(frozen=True)
class Plain(Body[M]):
    """A body that holds one kind of message."""

    model: type[M]

    def encode(self, message: M) -> bytes:
        """Return the message's bytes."""
        return cbor.dumps(message.model_dump())

    def decode(self, data: bytes) -> M:
        """Return the message; DecodeError if the bytes do not encode one."""
        return validate(self.model, cbor.loads(data))


@dataclass(frozen=True)
class Tagged(Body[M]):
    """A body that holds one of several kinds of message, externally tagged: `{"Variant": payload}`."""

    variants: dict[str, type[M]]

    def encode(self, message: M) -> bytes:
        """Return the message's bytes."""
        for tag, model in self.variants.items():
            if type(message) is model:
                return cbor.dumps({tag: message.model_dump()})
        raise TypeError(f"this protocol has no message {type(message).__name__}")

    def decode(self, data: bytes) -> M:
        """Return the message; DecodeError if the bytes do not encode one."""
        tag, payload = untag(cbor.loads(data))
        if tag not in self.variants:
            raise cbor.DecodeError(
                f"unknown variant {tag[:MAX_PROBLEM_CHARACTERS]!r}, expected one of {', '.join(self.variants)}"
            )
        return validate(self.variants[tag], payload)


@dataclass(frozen=True)
class Protocol(Generic[Request, Response]):
    """A request/response protocol: its id and message types, for `Network.request` and `Network.handle`."""

    id: str
    request: Body[Request]
    response: Body[Response]


def untag(value: Any) -> tuple[str, Any]:
    """Split an externally tagged value into its tag and payload. The payload of a unit variant is None."""
    if isinstance(value, str):
        return value, None
    if isinstance(value, dict) and len(value) == 1:
        tag, payload = next(iter(value.items()))
        if isinstance(tag, str):
            return tag, payload
    raise cbor.DecodeError("an enum must be a text or a map of one entry")


def validate(model: type[M], value: Any) -> M:
    """Return a decoded value as a message; DecodeError, in one line, if it does not fit the model."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise cbor.DecodeError(f"not a {model.__name__}: {describe(error, 'message')}") from None
