"""The calls of the job bridge as Markdown, from its OpenAPI document."""

import json
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

from hypha_bridge.api import create_app
from hypha_bridge.bridge import Bridge

Schema = Mapping[str, Any]


def document() -> dict[str, Any]:
    """Return the OpenAPI document, which the bridge serves at /openapi.json. No bridge is opened for it."""
    return create_app(cast("Bridge", SimpleNamespace(telemetry=None))).openapi()


def calls() -> str:
    """Return a section for each call, and a table for each object that a call takes or returns."""
    api = document()
    sections = [_call(method, path, call) for path, item in api["paths"].items() for method, call in item.items()]
    objects = {name: schema for name, schema in api["components"]["schemas"].items() if "properties" in schema}
    tables = [f"\n### {name}\n\n{schema['description']}\n\n{_fields(schema)}" for name, schema in objects.items()]
    return "".join([*sections, "\n## Objects\n", *tables, "\n"])


def _call(method: str, path: str, call: Schema) -> str:
    return f"\n## {method.upper()} {path}\n\n{call['description']}\n" + "".join((*_request(call), *_answers(call)))


def _request(call: Schema) -> Iterator[str]:
    """Yield the headers of a call, and its body: its examples, or the name of its object if it has none."""
    for parameter in call.get("parameters", ()):
        yield f"\n- Header `{parameter['name']}`: {_type(parameter['schema'])}\n"
    if "requestBody" not in call:
        return
    body = call["requestBody"]["content"]["application/json"]
    if "examples" not in body:
        yield f"\nThe body is a {_type(body['schema'])}.\n"
    for name, example in body.get("examples", {}).items():
        also = f" ({example['description']})" if "description" in example else ""
        yield f"\nExample, {name}{also}:\n\n```json\n{json.dumps(example['value'])}\n```\n"


def _answers(call: Schema) -> Iterator[str]:
    """Yield the answers of a call. Errors are the same for all calls."""
    for status, answer in call["responses"].items():
        content = answer.get("content", {})
        if status.endswith("XX"):
            continue
        if not content:
            yield f"\nAnswer {status}, without a body.\n"
        for media_type, body in content.items():
            schema = body["schema"]
            yield f"\nAnswer {status}, `{media_type}`: {schema.get('description') or _type(schema)}\n"
            if "properties" in schema:
                yield f"\n{_fields(schema)}"


def _fields(schema: Schema) -> str:
    rows = (
        f"| `{name}` | {_type(field)} | {'yes' if name in schema.get('required', ()) else ''} "
        f"| {field.get('description', '').replace('<', '&lt;')} |\n"
        for name, field in schema["properties"].items()
    )
    return "| field | type | required | meaning |\n| --- | --- | --- | --- |\n" + "".join(rows)


def _type(schema: Schema) -> str:
    """Return the type of a value in words, with links to objects."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{value}`" for value in values)
    if variants := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_type(variant) for variant in variants)
    return _type_of_many(schema)


def _type_of_many(schema: Schema) -> str:
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"map to {_type(schema['additionalProperties'])}"
    return str(schema.get("type", "any value"))
