"""The standard `OTEL_*` variables and the check of each.

The OpenTelemetry SDK reads most of them itself, and some wrong values would end the process. Here, a wrong value gives
a warning and counts as not set.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Final, Literal, get_args

from hypha_contracts.pairs import parse_pairs
from hypha_contracts.text import escaped

Signal = Literal["metrics", "traces", "logs"]
SIGNALS: Final[tuple[Signal, ...]] = get_args(Signal)
Check = Callable[[str], str]
"""Returns a value as the SDK takes it. ValueError, which names what is allowed, for any other value."""

SAMPLERS: Final = (
    *("always_on", "always_off", "traceidratio"),
    *("parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"),
)
PROTOCOLS: Final = ("http/protobuf", "grpc")
_ENDPOINT: Final = re.compile(r"(https?://)?[^\s/:@]+(:\d{1,5})?(/\S*)?|https?://\S+", re.IGNORECASE)
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_MAX_NUMBER: Final = 2**31
_MAX_SHOWN: Final = 80
_DEFAULT_BATCH: Final = 512
_DEFAULT_QUEUE: Final = 2048
"""The SDK's defaults."""


def _one_of(*allowed: str) -> Check:
    def check(text: str) -> str:
        if text.lower() not in allowed:
            raise ValueError(f"use one of {', '.join(allowed)}")
        return text.lower()

    return check


def _several_of(*allowed: str) -> Check:
    def check(text: str) -> str:
        return ",".join(_one_of(*allowed)(part.strip()) for part in text.split(","))

    return check


def _whole(least: int, most: int = _MAX_NUMBER) -> Check:
    def check(text: str) -> str:
        if not text.isascii() or not text.isdigit() or not least <= int(text[:20]) <= most:
            raise ValueError(f"use a whole number from {least} to {most}")
        return str(int(text))

    return check


def _ratio(text: str) -> str:
    try:
        if 0 <= (ratio := float(text)) <= 1:
            return str(ratio)
    except ValueError:
        pass
    raise ValueError("use a number from 0 to 1")


def _endpoint(text: str) -> str:
    if not _ENDPOINT.fullmatch(text):
        raise ValueError("use a URL such as http://otel-collector:4318")
    return text


def _file(text: str) -> str:
    if not os.access(text, os.R_OK):
        raise ValueError("use the name of a file that this process can read")
    return text


def _pairs(text: str) -> str:
    parse_pairs(text)
    return text


def _headers(text: str) -> str:
    check_headers(parse_pairs(text))
    return text


def check_headers(headers: Mapping[str, str]) -> None:
    """Check that requests may carry these headers. ValueError, without the values, if not."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not value.isascii() or not value.isprintable():
            raise ValueError("a header has characters that no header may have")


def _any(text: str) -> str:
    return text


_OTLP: Final[Mapping[str, Check]] = {
    "ENDPOINT": _endpoint,
    "PROTOCOL": _one_of(*PROTOCOLS),
    "HEADERS": _headers,
    "TIMEOUT": _whole(1),
    "COMPRESSION": _one_of("none", "gzip", "deflate"),
    "INSECURE": _one_of("true", "false"),
    "CERTIFICATE": _file,
    "CLIENT_KEY": _file,
    "CLIENT_CERTIFICATE": _file,
}
"""The variables `OTEL_EXPORTER_OTLP_<NAME>` and `OTEL_EXPORTER_OTLP_<SIGNAL>_<NAME>`."""
_BATCH: Final = ("SCHEDULE_DELAY", "EXPORT_TIMEOUT", "MAX_QUEUE_SIZE", "MAX_EXPORT_BATCH_SIZE")
_LIMITS: Final = (
    *("ATTRIBUTE_COUNT", "ATTRIBUTE_VALUE_LENGTH", "SPAN_ATTRIBUTE_COUNT", "SPAN_ATTRIBUTE_VALUE_LENGTH"),
    *("SPAN_EVENT_COUNT", "SPAN_LINK_COUNT", "EVENT_ATTRIBUTE_COUNT", "LINK_ATTRIBUTE_COUNT"),
    *("LOGRECORD_ATTRIBUTE_COUNT", "LOGRECORD_ATTRIBUTE_VALUE_LENGTH"),
)

VARIABLES: Final[Mapping[str, Check]] = {
    "OTEL_SDK_DISABLED": _one_of("true", "false"),
    "OTEL_SERVICE_NAME": _any,
    "OTEL_RESOURCE_ATTRIBUTES": _pairs,
    "OTEL_TRACES_SAMPLER": _one_of(*SAMPLERS),
    "OTEL_TRACES_SAMPLER_ARG": _ratio,
    "OTEL_METRICS_EXPORTER": _several_of("otlp", "prometheus", "console", "none"),
    "OTEL_TRACES_EXPORTER": _several_of("otlp", "console", "none"),
    "OTEL_LOGS_EXPORTER": _several_of("otlp", "console", "none"),
    **{f"OTEL_EXPORTER_OTLP_{name}": check for name, check in _OTLP.items()},
    **{f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}": check for signal in SIGNALS for name, check in _OTLP.items()},
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": _one_of("cumulative", "delta", "lowmemory"),
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": _one_of(
        "explicit_bucket_histogram", "base2_exponential_bucket_histogram"
    ),
    "OTEL_EXPORTER_PROMETHEUS_HOST": _any,
    "OTEL_EXPORTER_PROMETHEUS_PORT": _whole(0, 65535),
    "OTEL_METRIC_EXPORT_INTERVAL": _whole(1),
    "OTEL_METRIC_EXPORT_TIMEOUT": _whole(1),
    "OTEL_METRICS_EXEMPLAR_FILTER": _one_of("always_on", "always_off", "trace_based"),
    **{f"OTEL_{kind}_{name}": _whole(1) for kind in ("BSP", "BLRP") for name in _BATCH},
    **{f"OTEL_{name}_LIMIT": _whole(0) for name in _LIMITS},
}


def check(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables of OpenTelemetry that are set to usable values, and a warning for each of the others."""
    usable: dict[str, str] = {}
    warnings = []
    for name, check_value in VARIABLES.items():
        if not (text := environ.get(name, "").strip()):
            continue
        try:
            usable[name] = check_value(text)
        except ValueError as error:
            shown = (
                "" if check_value in (_pairs, _headers) else f' "{escaped(text, _MAX_SHOWN)}"'
            )  # headers are secrets
            warnings.append(f"{name}{shown} is not usable and counts as not set: {error}.")
    for kind in ("BSP", "BLRP"):
        size, queue = f"OTEL_{kind}_MAX_EXPORT_BATCH_SIZE", f"OTEL_{kind}_MAX_QUEUE_SIZE"
        if int(usable.get(size, _DEFAULT_BATCH)) > int(usable.get(queue, _DEFAULT_QUEUE)):
            usable.pop(size, None)
            usable.pop(queue, None)
            warnings.append(f"{size} exceeds {queue}, so both count as not set: use at most the size of the queue.")
    return usable, warnings
