from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hypha_contracts.addresses import RESERVED_CIDRS
from hypha_contracts.node_config import NodeConfig
from hypha_messages.types import Resources
from hypha_worker.config_file import ConfigError, Loaded, load
from hypha_worker.runtimes.process.host import process_config
from hypha_worker.template import render

MINIMAL = """\
cert_pem = "cert.pem"
key_pem = "/etc/hypha/key.pem"
trust_pem = "ca/bundle.pem"
gateway_addresses = ["/ip4/203.0.113.50/tcp/4001"]
work_dir = "work"

[resources]
cpu = 16
memory = 64
storage = 500
gpu = 24

[[executors]]
class = "train"
name = "diloco-transformer"
runtime = "process"
cmd = "uv"
args = ["run", "--socket", "{SOCKET_PATH}"]

[[executors]]
class = "aggregate"
name = "parameter-server"
runtime = "parameter-server"
"""

# The complete example of the worker guide: `work_dir` and the telemetry keys stand below tables.
GUIDE = """\
cert_pem = "/etc/hypha/certs/worker-cert.pem"
key_pem = "/etc/hypha/certs/worker-key.pem"
trust_pem = "/etc/hypha/certs/ca-bundle.pem"

gateway_addresses = [
    "/ip4/203.0.113.50/tcp/4001",
    "/ip4/198.51.100.25/tcp/4001"
]

listen_addresses = [
    "/ip4/0.0.0.0/tcp/0"
]

relay_circuit = true

[resources]
cpu = 32
memory = 128
storage = 1000
gpu = 48  # 2x A6000 GPUs

work_dir = "/var/hypha/work"

[[executors]]
class = "train"
name = "diloco-transformer"
runtime = "process"
cmd = "uv"
args = ["run", "--job", "{JOB_JSON}"]

[[executors]]
class = "aggregate"
name = "parameter-server"
runtime = "parameter-server"

telemetry_endpoint = "http://otel-collector:4318"
telemetry_protocol = "http/protobuf"

[telemetry_attributes]
"service.name" = "hypha-worker"
"worker.instance" = "worker-gpu-01"
"""

# What the reference implementation's own `init` writes, less its comments.
REFERENCE = """\
cert_pem = "worker-cert.pem"
key_pem = "worker-key.pem"
trust_pem = "worker-trust.pem"
gateway_addresses = [
    "/ip4/1.2.3.4/tcp/1234",
    "/ip4/1.2.3.4/udp/1234/quic-v1",
]
listen_addresses = [
    "/ip4/127.0.0.1/tcp/0",
    "/ip4/127.0.0.1/udp/0/quic-v1",
]
external_addresses = []
exclude_cidr = [
    "127.0.0.0/8",
    "fc00::/7",
]
relay_circuit = true
work_dir = "/tmp"
telemetry_attributes = "service.name=worker,region=eu"
telemetry_headers = "Authorization=Bearer abc=="

[resources]
cpu = 1
memory = 8
storage = 20
gpu = 16

[offer]
price = 100.0
floor = 100.0

[offer.strategy]
type = "flexible"

[[executors]]
class = "train"
name = "diloco-transformer"
runtime = "process"
cmd = "uv"

[[executors]]
class = "aggregate"
name = "parameter-server"
runtime = "parameter-server"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "worker.toml"


def read(file: Path, text: str, environ: dict[str, str] | None = None, **overrides: Any) -> Loaded:
    file.write_text(text)
    return load(file, environ or {}, overrides)


def refused(file: Path, text: str, environ: dict[str, str] | None = None, **overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(file, text, environ, **overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_paths_start_at_the_files_directory(file: Path) -> None:
    config = read(file, MINIMAL).config
    assert config.cert_pem == file.parent / "cert.pem"
    assert config.key_pem == Path("/etc/hypha/key.pem")
    assert config.work_dir == file.parent / "work"


def test_a_price_below_the_default_floor_lowers_the_floor(file: Path) -> None:
    assert read(file, MINIMAL + "\n[offer]\nprice = 10\n").config.offer.floor == 10
    assert read(file, MINIMAL + "\n[offer]\nprice = 200\n").config.offer.floor == 100


def test_defaults_are_those_of_the_reference_implementation(file: Path) -> None:
    config = read(file, MINIMAL).config
    assert (config.offer.price, config.offer.floor, config.offer.strategy) == (100, 100, "whole")
    assert config.relay_circuit
    assert tuple(config.exclude_cidr) == RESERVED_CIDRS
    assert (config.leases.temporary_ms, config.leases.duration_s, config.leases.prune_ms) == (500, 10, 250)
    assert (config.arbiter.window_ms, config.arbiter.window_messages) == (200, 100)
    assert config.selection.strategy == "profit"
    assert config.capacity == Resources(cpu=16, memory=64, storage=500, gpu=24)


@pytest.mark.parametrize("lease_s", [1, 3600])
def test_bridges_wait_for_an_absent_node_longer_than_the_lease_can_last(file: Path, lease_s: float) -> None:
    config = read(file, MINIMAL + f"[leases]\nduration_s = {lease_s}\n").config
    made = process_config(config, Path("/work"))
    runs_out_s, granted_once_more_s = lease_s + made.grace_s, lease_s
    assert made.connector_deadline_s >= runs_out_s + granted_once_more_s


def test_misplaced_keys_of_the_guides_example_are_read_as_top_level_keys(file: Path) -> None:
    loaded = read(file, GUIDE)
    assert loaded.config.work_dir == Path("/var/hypha/work")
    assert loaded.config.telemetry_endpoint == "http://otel-collector:4318"
    assert loaded.config.telemetry_attributes["worker.instance"] == "worker-gpu-01"
    assert [warning.split(": ")[1].split()[0] for warning in loaded.warnings] == [
        "work_dir",
        "telemetry_endpoint",
        "telemetry_protocol",
    ]


def test_a_file_of_the_reference_implementation_loads_unchanged(file: Path) -> None:
    loaded = read(file, REFERENCE)
    assert loaded.warnings == ()
    assert loaded.config.offer.strategy == "flexible"
    assert loaded.config.telemetry_attributes == {"service.name": "worker", "region": "eu"}
    assert loaded.config.telemetry_headers["Authorization"].get_secret_value() == "Bearer abc=="


def test_secrets_do_not_show(file: Path) -> None:
    config = read(file, REFERENCE).config
    assert "abc" not in repr(config)
    assert "abc" not in config.model_dump_json()


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        ('work_dir = "work"', 'work_dri = "work"', 5, ["work_dri", "Did you mean work_dir?"]),
        ("cpu = 16", "cpus = 16", 8, ["resources.cpus", "Did you mean cpu?"]),
        ("cpu = 16", "cpu = -1", 8, ["resources.cpu", "greater than or equal to 0"]),
        ("cpu = 16", "cpu = nan", 8, ["resources.cpu", "finite"]),
        ("/tcp/4001", "/4001", 4, ["gateway_addresses", "/ip4/203.0.113.50/tcp/4001"]),
        ('["/ip4/203.0.113.50/tcp/4001"]', "[]", 4, ["gateway_addresses", "at least 1"]),
        ('["/ip4/203.0.113.50/tcp/4001"]', '["/ip4/1.2.3.4/udp/1/webrtc-direct"]', 4, ["can use none of them"]),
        ('cmd = "uv"\n', "", 13, ["executors[0]", "needs cmd"]),
        ('class = "train"', 'class = "training"', 14, ["executors[0].class", "'train', 'aggregate' or 'inference'"]),
        ('runtime = "parameter-server"', 'runtime = "wasm"', 23, ["executors[1].runtime", "'process'"]),
        (
            'runtime = "parameter-server"',
            'runtime = "parameter-server"\ncmd = "x"',
            20,
            ["executors[1]", "takes no cmd"],
        ),
        ('"parameter-server"\nruntime', '"ps"\nrunntime', 23, ["executors[1].runntime", "Did you mean runtime?"]),
        ('class = "aggregate"', 'class = "train"', 20, ["executors[1]", "aggregate"]),
    ],
)
def test_errors_name_file_line_key_and_remedy(file: Path, old: str, new: str, line: int, parts: list[str]) -> None:
    assert old in MINIMAL
    error = refused(file, MINIMAL.replace(old, new))
    assert error.startswith(f"{file}:{line}: "), error
    for part in parts:
        assert part in error


def test_a_missing_key_is_named_with_its_purpose(file: Path) -> None:
    error = refused(file, MINIMAL.replace('cert_pem = "cert.pem"\n', ""))
    assert "cert_pem: missing. Add it (The node's certificate chain" in error


def test_a_repeated_executor_is_refused(file: Path) -> None:
    repeated = MINIMAL[MINIMAL.index("[[executors]]") : MINIMAL.rindex("[[executors]]")]
    assert "train/diloco-transformer is configured twice" in refused(file, MINIMAL + repeated)


def test_an_error_counts_the_other_errors(file: Path) -> None:
    text = MINIMAL.replace("cpu = 16", "cpu = -1").replace("gpu = 24", 'gpu = "many"')
    assert refused(file, text).endswith("(and 1 more)")


def test_a_home_directory_of_nobody_is_refused_with_its_line(file: Path) -> None:
    error = refused(file, MINIMAL.replace('"cert.pem"', '"~nobody-here/cert.pem"'))
    assert error.startswith(f"{file}:")
    assert "cert_pem: ~nobody-here/cert.pem begins with an unknown user" in error


@pytest.mark.parametrize("count", [65, 1000])
def test_many_executors_are_refused(file: Path, count: int) -> None:
    assert "executors: List should have at most 64 items" in refused(file, MINIMAL + "[[executors]]\n" * count)


def test_invalid_toml_is_refused_with_its_line(file: Path) -> None:
    assert "line 2" in refused(file, 'cert_pem = "cert.pem"\nkey_pem = \n')


@pytest.mark.parametrize("text", ["a = " + "[" * 30_000, "a = " + "{a=" * 10_000, "a = " + "1" * 5000])
def test_deep_and_long_values_are_refused_as_invalid_toml(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match="not TOML"):
        load(file, {})


@pytest.mark.parametrize("form", ["\n{} = 1", "\n[{}]", "\n[[{}]]", "\na = {{{} = 1}}"])
def test_a_key_of_many_parts_is_refused(file: Path, form: str) -> None:
    file.write_text(form.format(".".join(["a"] * 15_000)))
    with pytest.raises(ConfigError, match="not TOML"):
        load(file, {})


def test_a_deep_value_in_the_environment_is_a_text(file: Path) -> None:
    file.write_text(MINIMAL)
    with pytest.raises(ConfigError, match="cpu"):
        load(file, {"HYPHA_RESOURCES__CPU": "[" * 10_000})


def test_a_missing_file_is_refused_and_the_error_names_init(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file. .* write a worker's with `hypha-worker init`"):
        load(file, {})


def test_a_file_that_is_not_text_is_refused(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(file, {})


def test_the_environment_replaces_the_file_and_the_command_line_both(file: Path) -> None:
    environ = {
        "HYPHA_WORK_DIR": "/srv/env",
        "HYPHA_GATEWAY_ADDRESSES": '["/dns4/env/tcp/1"]',
        "HYPHA_LISTEN_ADDRESSES": "[/ip4/127.0.0.1/tcp/7]",
        "HYPHA_RELAY_CIRCUIT": "false",
        "HYPHA_RESOURCES__CPU": "3",
        "HYPHA_OFFER.FLOOR": "7",
        "HYPHA_TELEMETRY_ENDPOINT": "http://collector:4318",
        "HYPHA_TELEMETRY_ATTRIBUTES": "a=1,b=x%20y",
        "HYPHA_TELEMETRY_PROMETHEUS": "9464",
    }
    config = read(file, MINIMAL, environ, gateway_addresses=["/dns4/argument/tcp/2"]).config
    assert config.work_dir == Path("/srv/env")
    assert config.gateway_addresses == ["/dns4/argument/tcp/2"]
    assert config.listen_addresses == ["/ip4/127.0.0.1/tcp/7"]
    assert not config.relay_circuit
    assert (config.resources.cpu, config.resources.memory, config.offer.floor) == (3, 64, 7)
    assert config.telemetry_endpoint == "http://collector:4318"
    assert config.telemetry_attributes == {"a": "1", "b": "x y"}
    assert config.telemetry_prometheus == "9464"


def test_the_status_page_is_off_by_default_and_takes_an_address_or_a_port(file: Path) -> None:
    assert read(file, MINIMAL).config.status_page.listen is None
    page = '[status_page]\nlisten = "127.0.0.1:8081"\nhosts = ["worker.example.org"]\n'
    assert read(file, MINIMAL + page).config.status_page.hosts == ["worker.example.org"]
    assert read(file, MINIMAL, {"HYPHA_STATUS_PAGE__LISTEN": "8081"}).config.status_page.listen == "8081"
    assert "status_page.listen: write a port such as" in refused(file, MINIMAL + page.replace("8081", "http"))
    assert "status_page.hosts[0]" in refused(file, MINIMAL + page.replace("worker.example.org", "http://worker"))


def test_an_error_in_the_environment_names_the_variable(file: Path) -> None:
    assert refused(file, MINIMAL, {"HYPHA_RELAY_CIRCUIT": "perhaps"}).startswith("HYPHA_RELAY_CIRCUIT: relay_circuit")


def test_variables_that_a_cluster_sets_for_services_are_ignored(file: Path) -> None:
    environ = {"HYPHA_GATEWAY_SERVICE_HOST": "10.0.0.1", "HYPHA_GATEWAY_PORT": "tcp://10.0.0.1:4001", "HYPHA_": "x"}
    assert read(file, MINIMAL, environ).config == read(file, MINIMAL).config


def test_both_names_of_a_telemetry_key_are_one_key(file: Path) -> None:
    text = 'exporter_otlp_endpoint = "http://file:4318"\n' + MINIMAL
    assert read(file, text).config.telemetry_endpoint == "http://file:4318"
    environ = {"HYPHA_TELEMETRY_ENDPOINT": "http://environment:4318"}
    assert read(file, text, environ).config.telemetry_endpoint == "http://environment:4318"


def test_a_command_is_a_name_in_path_or_a_path_relative_to_the_file(file: Path) -> None:
    config = read(file, MINIMAL.replace('cmd = "uv"', 'cmd = "./bin/train"')).config
    assert config.executors[0].cmd == str(file.parent / "bin/train")
    assert read(file, MINIMAL).config.executors[0].cmd == "uv"


def test_the_template_loads_and_has_every_key(file: Path) -> None:
    text = render("trainer", {"relay_circuit": False, "work_dir": Path("/srv/work")})
    config = read(file, text).config
    assert (config.relay_circuit, config.work_dir) == (False, Path("/srv/work"))
    for key in NodeConfig.model_fields.keys() - {"kubernetes"}:  # which an operator writes
        assert key in text


def test_the_template_keeps_characters_of_every_plane(file: Path) -> None:
    name = "tr\u00e4iner-\U0001f680"
    assert read(file, render(name, {})).config.work_dir == file.parent / f"{name}-work"


def test_every_default_that_the_template_shows_is_the_real_one(file: Path) -> None:
    text = render("trainer", {})
    shown = "\n".join(line.removeprefix("#") if line[1:2].isalpha() else line for line in text.split("\n"))
    without_value = "\n".join(line for line in shown.split("\n") if not line.endswith(" ="))
    assert read(file, without_value).config == read(file, text).config


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from([*NodeConfig.model_fields]),
)
def test_any_value_is_accepted_or_refused_in_one_line(file: Path, value: object, key: str) -> None:
    file.write_text(MINIMAL)
    try:
        load(file, {}, {key: value})
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017 - it need not be raised
