"""The settings of everything that a process exports, from its configuration and the `OTEL_*` variables.

A key of the configuration takes the place of the general variable of the same meaning. Variables for one signal, for
which the configuration has no key, still apply to that signal.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import SecretStr

from hypha_contracts.addresses import parse_listen_address
from hypha_contracts.node_config import NodeConfig
from hypha_contracts.pairs import parse_pairs
from hypha_telemetry.variables import SIGNALS, VARIABLES, Signal, check, check_headers

_OTLP: Final = "OTEL_EXPORTER_OTLP"
_OWN: Final = ("_ENDPOINT", "_PROTOCOL", "_HEADERS", "_COMPRESSION", "_TIMEOUT")
"""Variables of `OTEL_EXPORTER_OTLP` that this module reads. The SDK does not read them."""
_DEFAULT_TIMEOUT_MS: Final = "10000"
_DEFAULT_PROMETHEUS_PORT: Final = "9464"
_MAX_HEADERS_BYTES: Final = 16 * 1024


class SettingsError(Exception):
    """The headers for the collector cannot be used. The message says what to do, and never shows a value."""


class Otlp(NamedTuple):
    """How a signal is sent to a collector. The SDK reads everything else from the environment.

    Attributes:
        endpoint: None for the default of the protocol, which is this host.
    """

    protocol: str
    endpoint: str | None
    headers: Mapping[str, SecretStr]
    compression: str
    timeout_s: float


@dataclass(frozen=True)
class Settings:
    """What a process exports, and where to.

    Attributes:
        otlp: by signal, how it is sent to a collector.
        console: signals that are written to standard output.
        prometheus: host (None: all addresses) and port at which Prometheus reads the metrics.
        attributes: configured attributes of everything that is exported.
        environment: the variables that the SDK reads. Headers are not among them, because the SDK logs wrong ones.
        warnings: about variables with unusable values.
    """

    otlp: Mapping[Signal, Otlp] = field(default_factory=dict)
    console: frozenset[Signal] = frozenset()
    prometheus: tuple[str | None, int] | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def enabled(self) -> bool:
        """Whether anything is exported."""
        return bool(self.otlp or self.console or self.prometheus)

    def exports(self, signal: Signal) -> bool:
        """Whether a signal is exported."""
        return signal in self.otlp or signal in self.console or (signal == "metrics" and self.prometheus is not None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the SDK see `environment` in place of this process's variables."""
        replaced = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name in self.environment:
                del os.environ[name]
            os.environ.update(replaced)


def read_settings(environ: Mapping[str, str], config: NodeConfig | None = None) -> Settings:
    """Return the settings of this process.

    Raises:
        SettingsError: the headers of the configuration cannot be used.
    """
    variables, warnings = check(environ)
    if variables.get("OTEL_SDK_DISABLED") == "true":
        return Settings(warnings=tuple(warnings))
    attributes = parse_pairs(variables.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    if name := variables.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = name
    headers = None
    if config is not None:
        variables |= _from_config(config, warnings)
        attributes |= config.telemetry_attributes
        headers = _configured_headers(config)
    if variables.get("OTEL_TRACES_SAMPLER", "").endswith("traceidratio"):
        variables.setdefault("OTEL_TRACES_SAMPLER_ARG", "1.0")  # the SDK's default, of which it would warn
    exporters = {signal: _exporters(signal, variables) for signal in SIGNALS}
    return Settings(
        otlp={signal: _otlp(signal, variables, headers) for signal in SIGNALS if "otlp" in exporters[signal]},
        console=frozenset(signal for signal in SIGNALS if "console" in exporters[signal]),
        prometheus=_prometheus(exporters["metrics"], variables, config),
        attributes=attributes,
        environment={
            name: value for name, value in variables.items() if not (name.startswith(_OTLP) and name.endswith(_OWN))
        },
        warnings=tuple(warnings),
    )


def _from_config(config: NodeConfig, warnings: list[str]) -> dict[str, str]:
    """Return the variables whose places the configuration takes."""
    variables = {}
    if config.telemetry_endpoint is not None:
        variables[f"{_OTLP}_ENDPOINT"] = config.telemetry_endpoint
    if "telemetry_protocol" in config.model_fields_set:
        variables[f"{_OTLP}_PROTOCOL"] = config.telemetry_protocol
        if config.telemetry_protocol == "http/json":
            variables[f"{_OTLP}_PROTOCOL"] = "http/protobuf"
            warnings.append('telemetry_protocol "http/json" is not supported, so the node uses "http/protobuf".')
    if config.telemetry_sampler is not None:
        variables["OTEL_TRACES_SAMPLER"] = config.telemetry_sampler
    if "telemetry_sample_ratio" in config.model_fields_set:
        variables["OTEL_TRACES_SAMPLER_ARG"] = str(config.telemetry_sample_ratio)
    return variables


def _exporters(signal: Signal, variables: Mapping[str, str]) -> set[str]:
    """Return how a signal is exported: as its variable says, else to a configured collector."""
    if (chosen := variables.get(f"OTEL_{signal.upper()}_EXPORTER")) is not None:
        return set(chosen.split(","))
    configured = f"{_OTLP}_ENDPOINT" in variables or f"{_OTLP}_{signal.upper()}_ENDPOINT" in variables
    return {"otlp"} if configured else set()


def _otlp(signal: Signal, variables: Mapping[str, str], configured: Mapping[str, SecretStr] | None) -> Otlp:
    """Return how a signal is sent. `configured` takes the place of the general variable of headers."""

    def of_signal(name: str) -> str | None:
        return variables.get(f"{_OTLP}_{signal.upper()}_{name}")

    def variable(name: str, default: str) -> str:
        return of_signal(name) or variables.get(f"{_OTLP}_{name}", default)

    protocol = variable("PROTOCOL", "http/protobuf")
    endpoint = of_signal("ENDPOINT")
    if endpoint is None and (base := variables.get(f"{_OTLP}_ENDPOINT")):
        endpoint = base if protocol == "grpc" else f"{base.rstrip('/')}/v1/{signal}"
    if endpoint and protocol != "grpc" and "://" not in endpoint:
        endpoint = f"http://{endpoint}"
    headers: Mapping[str, SecretStr] = _secrets(parse_pairs(variable("HEADERS", "")))
    if configured is not None and of_signal("HEADERS") is None:
        headers = configured
    timeout_s = int(variable("TIMEOUT", _DEFAULT_TIMEOUT_MS)) / 1000
    return Otlp(protocol, endpoint, headers, variable("COMPRESSION", "none"), timeout_s)


def _prometheus(
    exporters: set[str], variables: Mapping[str, str], config: NodeConfig | None
) -> tuple[str | None, int] | None:
    if config is not None and config.telemetry_prometheus is not None:
        return parse_listen_address(config.telemetry_prometheus)
    if "prometheus" in exporters:
        host = variables.get("OTEL_EXPORTER_PROMETHEUS_HOST", "localhost")
        return host, int(variables.get("OTEL_EXPORTER_PROMETHEUS_PORT", _DEFAULT_PROMETHEUS_PORT))
    return None


def _configured_headers(config: NodeConfig) -> dict[str, SecretStr] | None:
    """Return the headers of the configuration and of the file that it names. None if it has none."""
    headers = dict(config.telemetry_headers)
    if config.telemetry_headers_file is not None:
        headers |= _read_headers(config.telemetry_headers_file)
    texts = {name: value.get_secret_value() for name, value in headers.items()}
    try:
        check_headers(texts)
    except ValueError as error:
        raise SettingsError(f"telemetry_headers: {error}. Correct the configuration, or the file it names.") from None
    return _secrets(texts) if texts else None


def _read_headers(path: Path) -> dict[str, SecretStr]:
    """Read lines such as `Authorization: Bearer ...`. SettingsError if the file has other lines."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_HEADERS_BYTES + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"telemetry_headers_file {path}: {reason}. Name a file that the node can read.") from None
    if len(data) > _MAX_HEADERS_BYTES:
        raise SettingsError(f"telemetry_headers_file {path}: larger than {_MAX_HEADERS_BYTES} bytes. Check the path.")
    headers = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            name, colon, value = line.partition(":")
            if not colon or not name.strip():
                raise SettingsError(
                    f"telemetry_headers_file {path}:{number}: not a header. Write one per line, as name: value."
                )
            headers[name.strip()] = SecretStr(value.strip())
    return headers


def _secrets(headers: Mapping[str, str]) -> dict[str, SecretStr]:
    """Return headers with names in lower case, because gRPC takes no other."""
    return {name.lower(): SecretStr(value) for name, value in headers.items()}
