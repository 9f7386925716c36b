"""W3C trace context: which trace and span something belongs to, as one line of text."""

import re
import secrets
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import AfterValidator, Field

VARIABLE: Final = "TRACEPARENT"
"""The environment variable that names the job's span to bridge and executor, if the node exports telemetry."""
HEADER: Final = "traceparent"
"""The header of the calls from executor to bridge and from bridge to node."""


def _not_zero(text: str) -> str:
    if not text.strip("0"):
        raise ValueError("an id of zeros names nothing")
    return text


TraceId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$"), AfterValidator(_not_zero)]
SpanId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$"), AfterValidator(_not_zero)]
_CONTEXT: Final = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED: Final = 0x01


@dataclass(frozen=True)
class TraceContext:
    """A span of a trace. Its children are exported if it is `sampled`."""

    trace_id: str
    span_id: str
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


def parse_trace_context(text: str | None) -> TraceContext | None:
    """Return the context that a text names, or None if it names none."""
    found = _CONTEXT.fullmatch(text or "")
    return found and TraceContext(found[1], found[2], bool(int(found[3], 16) & _SAMPLED))


def new_trace_id() -> str:
    """Return a random id."""
    return secrets.token_hex(16)


def new_span_id() -> str:
    """Return a random id."""
    return secrets.token_hex(8)
