"""A request/response protocol as a value: its id and the types of its two bodies."""

from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from hypha_messages import cbor

Request = TypeVar("Request")
Response = TypeVar("Response")

_MAX_SHOWN: Final = 200
"""Characters of a peer's text that an error quotes."""


class Body:
    """One side of a protocol: encodes its messages to CBOR bytes and decodes them."""

    def encode(self, message: Any) -> bytes:
        """Return the message's bytes."""
        raise NotImplementedError

    def decode(self, data: bytes) -> Any:
        """Return the message; DecodeError if the bytes are not one."""
        raise NotImplementedError


@dataclass(frozen=True)
class Plain(Body):
    """A body that is one message."""

    model: type[BaseModel]

    def encode(self, message: BaseModel) -> bytes:
        """Return the message's bytes."""
        return cbor.dumps(message.model_dump())

    def decode(self, data: bytes) -> BaseModel:
        """Return the message; DecodeError if the bytes are not one."""
        return validate(self.model, cbor.loads(data))


@dataclass(frozen=True)
class Tagged(Body):
    """A body that is one of several messages, externally tagged: `{"Variant": payload}`."""

    variants: dict[str, type[BaseModel]]

    def encode(self, message: BaseModel) -> bytes:
        """Return the message's bytes."""
        for tag, model in self.variants.items():
            if type(message) is model:
                return cbor.dumps({tag: message.model_dump()})
        raise TypeError(f"{type(message).__name__} is no message of this protocol")

    def decode(self, data: bytes) -> BaseModel:
        """Return the message; DecodeError if the bytes are not one."""
        tag, payload = untag(cbor.loads(data))
        if tag not in self.variants:
            raise cbor.DecodeError(f"unknown variant {tag[:_MAX_SHOWN]!r}, expected one of {', '.join(self.variants)}")
        return validate(self.variants[tag], payload)


@dataclass(frozen=True)
class Protocol(Generic[Request, Response]):
    """A request/response protocol of the network, as `Network.request` and `Network.handle` take it."""

    id: str
    request: Body
    response: Body


def untag(value: Any) -> tuple[str, Any]:
    """Split an externally tagged value into tag and payload; a unit variant has the payload None."""
    if isinstance(value, str):
        return value, None
    if isinstance(value, dict) and len(value) == 1:
        tag, payload = next(iter(value.items()))
        if isinstance(tag, str):
            return tag, payload
    raise cbor.DecodeError("an enum is a text or a map of one entry")


def validate(model: type[BaseModel], value: Any) -> BaseModel:
    """Validate a decoded value; DecodeError, in one line, if it is not such a message."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[:3]
        reasons = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'message'}: {e['msg']}"[:_MAX_SHOWN] for e in found)
        raise cbor.DecodeError(f"not a {model.__name__}: {reasons}") from None
