"""Which settings a process takes from its configuration and from the variables of OpenTelemetry."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hypha_contracts.node_config import NodeConfig
from hypha_telemetry.settings import Settings, SettingsError, read_settings
from hypha_telemetry.variables import SAMPLERS, VARIABLES

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


def config(**values: Any) -> NodeConfig:
    needed = {
        "cert_pem": "c",
        "key_pem": "k",
        "trust_pem": "t",
        "gateway_addresses": ["/ip4/127.0.0.1/tcp/1"],
        "work_dir": "w",
        "resources": {"cpu": 1, "memory": 1, "storage": 1},
        "executors": [{"class": "aggregate", "name": "ps", "runtime": "parameter-server"}],
    }
    return NodeConfig.model_validate(needed | values)


def headers(settings: Settings, signal: Any = "metrics") -> dict[str, str]:
    return {name: value.get_secret_value() for name, value in settings.otlp[signal].headers.items()}


def test_without_settings_nothing_is_exported() -> None:
    settings = read_settings({}, config())
    assert not settings.enabled
    assert settings.warnings == ()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_standard_sampler_is_taken(sampler: str) -> None:
    settings = read_settings(ENDPOINT | {"OTEL_TRACES_SAMPLER": sampler}, config())
    assert settings.environment["OTEL_TRACES_SAMPLER"] == sampler
    assert settings.warnings == ()
    assert read_settings({}, config(telemetry_sampler=sampler)).environment["OTEL_TRACES_SAMPLER"] == sampler


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("OTEL_TRACES_SAMPLER_ARG", "nan"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/does/not/exist"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "a b"),
        ("OTEL_METRICS_EXPORTER", "otlp,statsd"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "-1"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "16"),  # less than a batch
        ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "9" * 30),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
        ("OTEL_SDK_DISABLED", "perhaps"),
        ("OTEL_EXPORTER_PROMETHEUS_PORT", "65536"),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "some"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=%ff"),
    ],
)
def test_a_wrong_value_gives_one_warning_and_counts_as_not_set(variable: str, value: str) -> None:
    settings = read_settings(ENDPOINT | {variable: value}, config(telemetry_endpoint="http://collector:4318"))
    assert len(settings.warnings) == 1
    assert variable in settings.warnings[0]
    assert variable not in settings.environment
    unset = read_settings(ENDPOINT, config(telemetry_endpoint="http://collector:4318"))
    assert replace(settings, warnings=()) == unset


def test_an_empty_variable_counts_as_not_set() -> None:
    settings = read_settings(ENDPOINT | dict.fromkeys(VARIABLES.keys() - ENDPOINT.keys(), ""), config())
    assert settings == read_settings(ENDPOINT, config())


def test_headers_and_attributes_are_percent_decoded() -> None:
    settings = read_settings(
        ENDPOINT
        | {
            "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Basic%20YQ%3D%3D, x-tenant=a%2Cb",
            "OTEL_RESOURCE_ATTRIBUTES": "owner=J%C3%BCrgen%2C%20Ops,region=eu",
        },
    )
    assert headers(settings) == {"authorization": "Basic YQ==", "x-tenant": "a,b"}
    assert settings.attributes == {"owner": "Jürgen, Ops", "region": "eu"}


def test_headers_that_are_not_encoded_keep_their_equals_signs() -> None:
    settings = read_settings(ENDPOINT | {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer abc=="})
    assert headers(settings) == {"authorization": "Bearer abc=="}


def test_the_service_name_takes_precedence_over_the_attributes_and_the_configuration_over_both() -> None:
    environ = {"OTEL_SERVICE_NAME": "named", "OTEL_RESOURCE_ATTRIBUTES": "service.name=attribute,a=1"}
    assert read_settings(environ, config()).attributes == {"service.name": "named", "a": "1"}
    configured = config(telemetry_attributes={"service.name": "configured"})
    assert read_settings(environ, configured).attributes == {"service.name": "configured", "a": "1"}


def test_the_configuration_takes_the_place_of_the_general_variables() -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://environment:4317",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=environment",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces:4318/own",
        "OTEL_TRACES_SAMPLER": "always_off",
        "OTEL_TRACES_SAMPLER_ARG": "0.5",
    }
    configured = config(
        telemetry_endpoint="http://file:4318/",
        telemetry_protocol="http/protobuf",
        telemetry_headers={"b": "file"},
        telemetry_sampler="traceidratio",
        telemetry_sample_ratio=0.25,
    )
    settings = read_settings(environ, configured)
    assert settings.otlp["metrics"].endpoint == "http://file:4318/v1/metrics"
    assert settings.otlp["logs"].endpoint == "http://file:4318/v1/logs"
    assert settings.otlp["traces"].endpoint == "http://traces:4318/own"
    assert {otlp.protocol for otlp in settings.otlp.values()} == {"http/protobuf"}
    assert headers(settings) == {"b": "file"}
    assert settings.environment["OTEL_TRACES_SAMPLER"] == "traceidratio"
    assert settings.environment["OTEL_TRACES_SAMPLER_ARG"] == "0.25"


def test_each_signal_may_have_a_collector_of_its_own() -> None:
    settings = read_settings(
        {
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://logs:4317",
            "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "k=v",
            "OTEL_EXPORTER_OTLP_LOGS_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
        }
    )
    assert settings.otlp.keys() == {"logs"}
    logs = settings.otlp["logs"]
    assert (logs.protocol, logs.endpoint, logs.compression, logs.timeout_s) == ("grpc", "http://logs:4317", "gzip", 2.5)
    assert headers(settings, "logs") == {"k": "v"}


def test_an_exporter_may_be_chosen_for_each_signal() -> None:
    environ = ENDPOINT | {
        "OTEL_METRICS_EXPORTER": "otlp,prometheus",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "console",
    }
    settings = read_settings(environ)
    assert settings.otlp.keys() == {"metrics"}
    assert settings.console == {"logs"}
    assert settings.prometheus == ("localhost", 9464)
    chosen = {"OTEL_EXPORTER_PROMETHEUS_HOST": "::1", "OTEL_EXPORTER_PROMETHEUS_PORT": "1"}
    assert read_settings(environ | chosen).prometheus == ("::1", 1)


def test_an_exporter_without_an_endpoint_sends_to_this_host() -> None:
    settings = read_settings({"OTEL_TRACES_EXPORTER": "otlp"})
    assert settings.otlp["traces"].endpoint is None
    assert settings.otlp.keys() == {"traces"}


def test_a_disabled_sdk_exports_nothing() -> None:
    environ = ENDPOINT | {"OTEL_SDK_DISABLED": "TRUE", "OTEL_METRICS_EXPORTER": "prometheus"}
    configured = config(telemetry_endpoint="http://collector:4318", telemetry_prometheus="1")
    assert not read_settings(environ, configured).enabled


@pytest.mark.parametrize(
    ("text", "expected"),
    [("9464", ("localhost", 9464)), (":9464", (None, 9464)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("[::1]:2", ("::1", 2))],
)
def test_prometheus_is_served_on_loopback_unless_an_address_is_named(text: str, expected: tuple[str, int]) -> None:
    assert read_settings({}, config(telemetry_prometheus=text)).prometheus == expected


@pytest.mark.parametrize("text", ["", "host", "host:", "1:2:x", "65536", "-1", "9" * 30])
def test_an_address_without_a_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write a port such as 9464"):
        config(telemetry_prometheus=text)


def test_headers_come_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("# for the collector\nAuthorization: Bearer a=b, c: d\n\nX-Tenant:t\r\n")
    configured = config(
        telemetry_endpoint="http://c:4318",
        telemetry_headers={"x-tenant": "replaced", "x-other": "o"},
        telemetry_headers_file=str(file),
    )
    expected = {"authorization": "Bearer a=b, c: d", "x-tenant": "t", "x-other": "o"}
    assert headers(read_settings({}, configured)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"s3cret", ":1: not a header"),
        (b"a: b\n: s3cret", ":2: not a header"),
        (b"\xff", "not UTF-8"),
        (b"a: " + b"s3cret" * 9999, "larger than"),
        (b"a b: s3cret", "characters that no header may have"),
        (b"a: s3cret\x07", "characters that no header may have"),
    ],
)
def test_a_wrong_file_of_headers_is_refused_without_showing_it(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "headers"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=message) as caught:
        read_settings({}, config(telemetry_endpoint="http://c:1", telemetry_headers_file=str(file)))
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("value", ["authorization", "authorization=s3cret%00", "=s3cret", "a b=s3cret", "a=%ffs3cret"])
def test_a_warning_about_headers_does_not_show_them(value: str) -> None:
    settings = read_settings(ENDPOINT | {"OTEL_EXPORTER_OTLP_HEADERS": value})
    assert len(settings.warnings) == 1
    assert "s3cret" not in settings.warnings[0]
    assert headers(settings) == {}


def test_the_settings_show_no_header() -> None:
    environ = ENDPOINT | {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=s3cret"}
    assert "s3cret" not in repr(read_settings(environ, config(telemetry_headers={"a": "s3cret"})))
    assert "s3cret" not in repr(read_settings(environ))


def test_the_sdk_sees_checked_variables_only_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=s3cret")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "wrong")
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "7")
    before = dict(os.environ)
    with read_settings(os.environ, config(telemetry_sampler="always_off")).applied():
        seen = {name for name in os.environ if name.startswith("OTEL_")}
        assert seen == {"OTEL_SPAN_EVENT_COUNT_LIMIT", "OTEL_TRACES_SAMPLER"}
    assert dict(os.environ) == before
