"""All metrics of our processes, by process.

`python -m hypha_telemetry.catalogue docs/telemetry.md` writes the tables of that page.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Final

from hypha_contracts.pages import replace_table, rewrite
from hypha_telemetry.job_metrics import JOB_METRICS
from hypha_telemetry.metric import Metric
from hypha_telemetry.node_metrics import NODE_METRICS
from hypha_telemetry.operator_metrics import OPERATOR_METRICS
from hypha_telemetry.process_metrics import PROCESS_METRICS

CATALOGUE: Final[Mapping[str, tuple[Metric, ...]]] = {
    "node": NODE_METRICS,
    "job": JOB_METRICS,
    "operator": OPERATOR_METRICS,
    "node and operator": PROCESS_METRICS,
}


def with_tables(page: str) -> str:
    """Return a page of documentation with the table of each process between its markers. ValueError without markers."""
    for process, metrics in CATALOGUE.items():
        begin = f"<!-- metrics of {process}: `make metrics` writes this table -->\n"
        page = replace_table(page, f"metrics of {process}", begin, "<!-- end -->", _table(metrics))
    return page


def _table(metrics: Iterable[Metric]) -> str:
    rows = "".join(
        f"| `{metric.name}` | `{metric.prometheus_name}` | {metric.kind} | `{metric.unit}` | {_attributes(metric)} "
        f"| {metric.description} |\n"
        for metric in metrics
    )
    return "| metric | in Prometheus | instrument | unit | attributes | meaning |\n" + "| --- " * 6 + "|\n" + rows


def _attributes(metric: Metric) -> str:
    return "<br>".join(f"`{name}`: {values}" for name, values in metric.attributes.items())


if __name__ == "__main__":
    rewrite(sys.argv[1:], with_tables)
