"""Types that both resources use: names, quantities, conditions."""

import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from hypha_contracts.node_config import ObjectName
from hypha_contracts.text import escaped
from hypha_contracts.units import QUANTITY_PATTERN, parse_quantity

_MAX_QUANTITY: Final = 2**63 - 1


class Schema(BaseModel):
    """Base of all models: immutable, in camelCase in the API. Unknown fields of newer versions are ignored."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, serialize_by_alias=True, alias_generator=to_camel
    )


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """Return the part of a schema that holds rules in CEL, each with the message for objects that break it."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]}


def _check_quantity(text: str) -> str:
    if not 0 < parse_quantity(text) <= _MAX_QUANTITY:
        raise ValueError(f"{text!r} is not more than zero and at most {_MAX_QUANTITY}")
    return text


def _number_to_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Quantity = Annotated[
    str,
    BeforeValidator(_number_to_text),
    AfterValidator(_check_quantity),
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "pattern": QUANTITY_PATTERN,
            **rules(
                (
                    "type(self) == int ? self > 0 : !isQuantity(self) || quantity(self).isGreaterThan(quantity('0'))",
                    "must be more than zero",
                )
            ),
        }
    ),
]
"""A Kubernetes quantity above zero. The model keeps its text, so that it does not differ from the text in Git."""

Name = Annotated[ObjectName, Field(min_length=1)]
"""The name of another object in the same namespace."""

SecretKey = Annotated[str, Field(max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
"""A key of a Secret."""

KeptSeconds = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""How long an ended object is kept, with the same maximum as in Kubernetes."""

PeerIdText = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[1-9A-HJ-NP-Za-km-z]+$")]
"""A peer id in base58."""

Time = Annotated[
    AwareDatetime,
    Field(json_schema_extra={"pattern": r"^[1-9].{9}T[0-9:]{8}([.][0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"}),
]
"""A time. The API server's format `date-time` alone would accept times without a time zone and years before 1."""

Passthrough = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
"""An object whose fields this schema does not describe."""

_NAME_OF_KEY: Final = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
KEY: Final = f"^([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_NAME_OF_KEY}$"
"""The pattern of the key of a label or annotation."""
LABEL_VALUE: Final = f"^({_NAME_OF_KEY})?$"
"""The pattern of the value of a label."""
_WRITE_KEYS: Final = "write keys as name or example.org/name"


def _check_keys(found: dict[str, str]) -> dict[str, str]:
    if wrong := [key for key in found if not re.fullmatch(KEY, key)]:
        raise ValueError(f"{wrong[0]!r} is no key: {_WRITE_KEYS}")
    return found


_KEYS: Final = Field(max_length=16, json_schema_extra=rules((f"self.all(key, key.matches('{KEY}'))", _WRITE_KEYS)))
_LabelValue = Annotated[str, Field(max_length=63, pattern=LABEL_VALUE)]

Labels = Annotated[dict[str, _LabelValue], _KEYS, AfterValidator(_check_keys)]
"""Labels of an object, valid for the API server."""

Annotations = Annotated[dict[str, Annotated[str, Field(max_length=4096)]], _KEYS, AfterValidator(_check_keys)]
"""Annotations of an object, valid for the API server."""


def _escaped(value: Any) -> Any:
    return escaped(value) if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_escaped)]
"""Text for people that may quote a peer, a scheduler or a job. It is escaped and cut."""


class Condition(Schema):
    """One aspect of the state, in the form of `metav1.Condition`."""

    type: Annotated[str, Field(max_length=316)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(max_length=1024)]
    message: Annotated[Text, Field(max_length=32768)] = ""
    last_transition_time: Time
    observed_generation: Annotated[int, Field(ge=0)] | None = None


Conditions = Annotated[
    list[Condition],
    Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
]
