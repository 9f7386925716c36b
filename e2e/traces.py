"""The trees of spans that a collector has received."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, Final

from e2e.monitoring import Collector

_RUN: Final = "job > lease > dispatch"
_OF_EVERY_JOB: Final = frozenset(
    {
        *("job > advertisement", "job > evaluation", "job > offer"),
        *(f"{_RUN} > bridge ready", f"{_RUN} > executor started"),
    }
)
OF_EVERY_JOB: Final = _OF_EVERY_JOB | {f"{_RUN} > push received", f"{_RUN} > outer step"}
"""The paths of a job of a training, whatever its executor."""
OF_INFERENCE: Final = _OF_EVERY_JOB | {
    *(f"{_RUN} > fetch", f"{_RUN} > slice > ask for slice", f"{_RUN} > slice > pull slice"),
    f"{_RUN} > predictions delivered > push > deliver push",
}
OF_A_TRAINER: Final = OF_EVERY_JOB | {
    *(f"{_RUN} > fetch", f"{_RUN} > slice > ask for slice", f"{_RUN} > slice > pull slice", f"{_RUN} > batch"),
    *(f"{_RUN} > pseudo-gradient sent > push > deliver push", f"{_RUN} > update received"),
}
OF_A_PARAMETER_SERVER: Final = OF_EVERY_JOB | {f"{_RUN} > update sent > push > deliver push"}
IN_A_PROCESS: Final = frozenset({f"{_RUN} > process started"})
IN_A_POD: Final = frozenset({f"{_RUN} > pod scheduled", f"{_RUN} > image pulled"})


class Tree:
    """The spans of a trace. `spans` has the last one of each name."""

    def __init__(self, spans: Iterable[Any]) -> None:
        self._by_id = {span.span_id: span for span in spans}
        self.spans = {span.name: span for span in self._by_id.values()}

    @property
    def paths(self) -> set[str]:
        """The names from the root to each span. A span whose parent has not arrived counts as a root."""
        return {self._path(span) for span in self._by_id.values()}

    def path(self, name: str) -> str:
        """Return the names from the root to the last span of a name."""
        return self._path(self.spans[name])

    def _path(self, span: Any) -> str:
        found = [span.name]
        while (parent := self._by_id.get(span.parent_span_id)) is not None:
            span = parent
            found.insert(0, span.name)
        return " > ".join(found)


def trees(spans: Iterable[Any]) -> list[Tree]:
    """Return the tree of each trace."""
    spans = list(spans)
    return [Tree(span for span in spans if span.trace_id == trace) for trace in {span.trace_id for span in spans}]


def trees_at(collector: Collector) -> list[Tree]:
    """Return the tree of each trace that a collector has received so far."""
    return trees(
        SimpleNamespace(
            name=span["name"],
            trace_id=span["traceId"],
            span_id=span["spanId"],
            parent_span_id=span.get("parentSpanId", ""),
        )
        for span in collector.spans()
    )
