"""Writes the reference of a HyphaWorker from the descriptions of its fields.

`python -m hypha_resources.reference docs/hyphaworker.md` writes the tables of that page.
"""

import re
import sys
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from hypha_contracts.pages import replace_table, rewrite
from hypha_resources.crd import structural
from hypha_resources.worker import HyphaWorkerSpec

_BEGIN: Final = "<!-- fields: `make crds` writes these tables -->\n"
_END: Final = "<!-- end -->"
_HEAD: Final = "| field | type | default | meaning |\n| --- | --- | --- | --- |\n"
_DEFAULT: Final = re.compile(r"(?:^|\s)Default: (.+)\.$")
"""The end of a description, of which the reference makes a column."""
_PAGE: Final = re.compile(r"docs/([-a-z]+\.md)")


class Field(NamedTuple):
    """A row of the reference."""

    path: str
    type: str
    default: str
    meaning: str


def with_tables(page: str) -> str:
    """Return a page of documentation with the tables of all fields between its markers. ValueError without markers."""
    return replace_table(page, "fields", _BEGIN, _END, "".join(_sections()))


def _sections() -> Iterator[str]:
    """Yield a section for each object of the specification, and one for the remaining fields."""
    properties: dict[str, Any] = structural(HyphaWorkerSpec, for_users=True)["properties"]
    remaining = []
    for name, schema in properties.items():
        if fields := [*_below(name, schema)]:
            description = schema.get("description") or schema["items"]["description"]
            yield f"\n### {name}\n\n{_linked(description)}\n\n{_table(fields)}"
        else:
            remaining.append(_field(name, schema, required=False))
    yield f"\n### Other fields\n\n{_table(remaining)}\n"


def _below(path: str, schema: dict[str, Any]) -> Iterator[Field]:
    """Yield the fields of an object or of a list of objects, each before its own fields."""
    schema = schema.get("items", schema)
    for name, part in schema.get("properties", {}).items():
        inner = f"{path}.{name}"
        yield _field(inner, part, required=name in schema.get("required", ()))
        yield from _below(inner, part)


def _field(path: str, schema: dict[str, Any], *, required: bool) -> Field:
    description = schema.get("description") or schema.get("items", {}).get("description", "")
    default = _DEFAULT.search(description)
    meaning = description[: default.start()] if default else description
    return Field(
        path,
        _type(schema),
        "required" if required else _as_code(default[1]) if default else "",
        _linked(meaning),
    )


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity"
    if schema["type"] == "array":
        return f"list of {_type(schema['items'])}"
    if "additionalProperties" in schema:
        return f"map to {_type(schema['additionalProperties'])}"
    return f"{schema['type']}{_interval(schema)}"


def _interval(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return ""
    if high is None:
        return f" from {low:g}"
    return f" {low:g} to {high}"


def _as_code(default: str) -> str:
    """Return a value as code, and a sentence as it is."""
    return _linked(default) if " " in default else f"`{default}`"


def _linked(text: str) -> str:
    """Return a description as one line of Markdown, in which the names of pages are links."""
    return _PAGE.sub(r"[\1](\1)", " ".join(text.split())).replace("|", "\\|").replace("<", "&lt;")


def _table(fields: list[Field]) -> str:
    rows = (f"| `{field.path}` | {field.type} | {field.default} | {field.meaning} |\n" for field in fields)
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    rewrite(sys.argv[1:], with_tables)
