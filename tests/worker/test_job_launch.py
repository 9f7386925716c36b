"""What a job's processes are started with."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_contracts.bridge_config import CacheConfig
from hypha_worker.job import LaunchError
from hypha_worker.runtimes.process import launch
from hypha_worker.runtimes.process.launch import JobPaths

PATHS = JobPaths(Path("/srv/jobs/7"), Path("/srv/hypha-7"))
VALUES = launch.variables(PATHS, '{"job_id": "{WORK_DIR}"}')


def test_all_placeholders_are_replaced() -> None:
    template = ("run", "--socket={SOCKET_PATH}", "{WORK_DIR}", "{JOB_FILE}", "{JOB_JSON}")
    assert launch.executor_args(template, VALUES) == [
        "run",
        "--socket=/srv/hypha-7/bridge.sock",
        "/srv/hypha-7",
        "/srv/hypha-7/job.json",
        '{"job_id": "{WORK_DIR}"}',
    ]


def test_other_braces_stay_as_they_are() -> None:
    assert launch.executor_args(("{OTHER}", "{", "{}", '{"a": 1}'), VALUES) == ["{OTHER}", "{", "{}", '{"a": 1}']


def test_a_job_too_long_for_an_argument_is_refused_and_the_error_names_the_remedy() -> None:
    values = VALUES | {"JOB_JSON": "x" * 200_000}
    with pytest.raises(LaunchError, match=r"use \{JOB_FILE\} instead of \{JOB_JSON\}"):
        launch.executor_args(("{JOB_JSON}",), values)


def test_a_job_too_long_for_a_variable_is_left_out_of_the_environment() -> None:
    environment = launch.executor_environment({}, VALUES | {"JOB_JSON": "x" * 200_000}, None, {})
    assert "JOB_JSON" not in environment
    assert environment["JOB_FILE"] == "/srv/hypha-7/job.json"


SECRETS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "HYPHA_KEY_PEM",
    "UV_PUBLISH_TOKEN",
    "UV_PUBLISH_PASSWORD",
    "PIP_INDEX_URL",
    "NCCL_AUTH",
)


def test_the_environment_has_the_necessary_variables_and_no_secret() -> None:
    host = dict.fromkeys(SECRETS, "s3cret") | {
        "PATH": "/bin",
        "LANG": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "HF_HOME": "/cache",
        "SSH_AUTH_SOCK": "/s3cret",
        "HOME": "/home/worker",
    }
    environment = launch.executor_environment(host, VALUES, 4, {"MODE": "fast"})
    assert "s3cret" not in str(environment)
    kept = {k: environment[k] for k in ("PATH", "LANG", "CUDA_VISIBLE_DEVICES", "HF_HOME", "HOME", "MODE")}
    assert kept == {
        "PATH": "/bin",
        "LANG": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "HF_HOME": "/cache",
        "HOME": "/srv/hypha-7",
        "MODE": "fast",
    }
    assert environment["OMP_NUM_THREADS"] == "4"
    assert environment["UV_CACHE_DIR"] == "/home/worker/.cache/uv"


def test_the_configured_environment_wins_but_not_over_the_jobs_own() -> None:
    extra = {"PATH": "/opt/bin", "OMP_NUM_THREADS": "2", "WORK_DIR": "/elsewhere"}
    environment = launch.executor_environment({"PATH": "/bin"}, VALUES, 4, extra)
    assert environment["PATH"] == "/opt/bin"
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["WORK_DIR"] == "/srv/hypha-7"


PROXIES = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)
OF_UV = (
    *("UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_CONFIG_FILE"),
    *("UV_INDEX_MINE_USERNAME", "UV_INDEX_MINE_PASSWORD", "UV_INDEX_STRATEGY", "UV_HTTP_TIMEOUT", "UV_NATIVE_TLS"),
    *("UV_INSECURE_HOST", "UV_OFFLINE", "UV_PYTHON_INSTALL_MIRROR", "UV_KEYRING_PROVIDER", "NETRC", "SSL_CERT_FILE"),
)


def test_an_executor_that_uv_installs_gets_the_proxies_and_the_settings_of_uv() -> None:
    host = {name: f"value of {name}" for name in (*PROXIES, *OF_UV)}
    environment = launch.executor_environment(host, VALUES, None, {})
    assert {name: environment.get(name) for name in host} == host


def test_the_bridge_gets_the_proxies_and_no_settings_of_uv() -> None:
    host = dict.fromkeys((*PROXIES, "UV_INDEX_MINE_PASSWORD", "HF_TOKEN"), "value")
    environment = launch.bridge_environment(host, PATHS.work)
    assert environment.keys() == {*PROXIES, "HOME", "WORK_DIR"}


def test_temporary_files_are_in_the_work_dir_unless_its_path_is_too_long_for_sockets() -> None:
    assert launch.executor_environment({}, VALUES, None, {})["TMPDIR"] == "/srv/hypha-7/tmp"
    deep = launch.variables(JobPaths(Path("/c"), Path("/" + "d" * 80)), "{}")
    assert "TMPDIR" not in launch.executor_environment({}, deep, None, {})


def test_a_work_directory_too_long_for_a_socket_is_refused() -> None:
    assert launch.judge_path_length(Path("/" + "d" * 51)).mark == "ok"
    too_long = launch.judge_path_length(Path("/" + "d" * 52))
    assert too_long.mark == "failure"
    assert "longer than 52 bytes" in too_long.message
    assert too_long.remedy == "Choose a shorter path."


def test_the_bridge_configuration_names_the_paths_and_settings_of_the_job() -> None:
    process = launch.ProcessConfig(
        Path("/srv"),
        {},
        connector_deadline_s=80,
        drain_s=60,
        read_ahead=3,
        allow_private_addresses=True,
        exclude_cidr=["44.0.0.0/8"],
        cache=CacheConfig(directory=Path("/srv/cache"), max_bytes=1000),
    )
    config = launch.bridge_config(PATHS, process, 5_000_000)
    assert config.connector.uds == Path("/srv/connector.sock")
    assert (config.connector.token_file, config.connector.deadline_s) == (Path("/srv/jobs/7/token"), 80)
    assert (config.socket, config.work_dir, config.job_file) == (PATHS.socket, PATHS.work, PATHS.job_file)
    assert (config.storage_bytes, config.read_ahead, config.allow_private_addresses) == (5_000_000, 3, True)
    assert config.exclude_cidr == ["44.0.0.0/8"]
    assert config.cache == CacheConfig(directory=Path("/srv/cache"), max_bytes=1000)
    assert (config.state_dir, config.drain_s) == (PATHS.bridge_state, 60)


@given(st.text(), st.text(), st.lists(st.text() | st.sampled_from(["{JOB_JSON}", "{WORK_DIR}", "{{WORK_DIR}}"])))
def test_placeholders_in_inserted_values_are_not_replaced(work_dir: str, job_json: str, template: list[str]) -> None:
    values = {"WORK_DIR": work_dir, "JOB_JSON": job_json}
    for before, after in zip(template, launch.executor_args(template, values), strict=True):
        if before == "{JOB_JSON}":
            assert after == job_json
        elif before == "{{WORK_DIR}}":
            assert after == "{" + work_dir + "}"


@pytest.mark.parametrize(("gpu_gb", "device_gb", "gpus"), [(0, 24, 0), (24, 24, 1), (30, 24, 2), (30, 0, 1), (0, 0, 0)])
def test_an_executor_is_told_how_many_gpus_its_lease_has(gpu_gb: float, device_gb: float, gpus: int) -> None:
    assert launch.lease_gpus(gpu_gb, device_gb) == gpus
