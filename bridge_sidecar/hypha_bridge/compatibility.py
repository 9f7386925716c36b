"""The two forms of the API's requests: the documented form, and the form that the stock executor sends.

Documented: `{"fetch": reference, "out_dir"?}`, `{"send": reference, "path"}`, `{"receive": reference, "out_dir"?}`,
with types in PascalCase and a strategy as text.
Stock: a bare reference to fetch, else `{"resource": reference, "path"?}`. One request may mix them.
An extension of this project: `"wait": true` in a request to send.
"""

from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from hypha_messages.job import Reference


def _stock(value: Any) -> Any:
    """Rewrite a reference to its form on the wire."""
    if not isinstance(value, dict):
        return value
    rewritten = dict(value)
    if isinstance(value.get("type"), str):
        rewritten["type"] = value["type"].lower()
    if isinstance(value.get("strategy"), str):
        rewritten["strategy"] = {"type": value["strategy"]}
    return rewritten


AnyReference = Annotated[Reference, BeforeValidator(_stock)]


class FetchRequest(BaseModel):
    """Fetch every file that a reference names."""

    fetch: AnyReference
    out_dir: str = "artifacts"

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), handler(TypeAdapter(Reference).core_schema)]}

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"fetch": value} if isinstance(value, dict) and "fetch" not in value and "type" in value else value


class SendRequest(BaseModel):
    """Send a file to peers."""

    send: Annotated[AnyReference, Field(validation_alias=AliasChoices("send", "resource"))]
    path: str
    wait: bool = Field(default=False, description="Answer once the peers have received the file.")


class ReceiveRequest(BaseModel):
    """Receive the files that peers push."""

    receive: Annotated[AnyReference, Field(validation_alias=AliasChoices("receive", "resource"))]
    out_dir: Annotated[str, Field(validation_alias=AliasChoices("out_dir", "path"))] = "incoming"
