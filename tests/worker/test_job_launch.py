"""What a job's processes are started with."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_worker.errors import NodeError
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
    "UV_INDEX_PASSWORD",
    "NCCL_AUTH",
)


def test_the_environment_has_the_necessary_variables_and_no_secret() -> None:
    host = dict.fromkeys(SECRETS, "s3cret") | {
        "PATH": "/bin",
        "LANG": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "HF_HOME": "/cache",
        "HTTPS_PROXY": "http://user:s3cret@proxy",
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


def test_only_the_bridge_gets_the_proxies() -> None:
    host = {"https_proxy": "http://proxy", "HF_TOKEN": "s3cret", "PATH": "/bin"}
    assert launch.bridge_environment(host, PATHS.work)["https_proxy"] == "http://proxy"
    assert "HF_TOKEN" not in launch.bridge_environment(host, PATHS.work)
    assert "https_proxy" not in launch.executor_environment(host, VALUES, None, {})


def test_temporary_files_are_in_the_work_dir_unless_its_path_is_too_long_for_sockets() -> None:
    assert launch.executor_environment({}, VALUES, None, {})["TMPDIR"] == "/srv/hypha-7/tmp"
    deep = launch.variables(JobPaths(Path("/c"), Path("/" + "d" * 80)), "{}")
    assert "TMPDIR" not in launch.executor_environment({}, deep, None, {})


def test_a_work_directory_too_long_for_a_socket_is_refused() -> None:
    launch.check_work_dir(Path("/var/hypha/work"))
    launch.check_work_dir(Path("/" + "d" * 51))
    with pytest.raises(NodeError, match="longer than 52 bytes"):
        launch.check_work_dir(Path("/" + "d" * 52))


def test_the_bridge_configuration_names_the_paths_and_settings_of_the_job() -> None:
    process = launch.ProcessConfig(
        Path("/srv"),
        {},
        connector_deadline_s=80,
        drain_s=60,
        read_ahead=3,
        allow_private_addresses=True,
        exclude_cidr=["44.0.0.0/8"],
    )
    config = launch.bridge_config(PATHS, process, 5_000_000)
    assert config.connector.uds == Path("/srv/connector.sock")
    assert (config.connector.token_file, config.connector.deadline_s) == (Path("/srv/jobs/7/token"), 80)
    assert (config.socket, config.work_dir, config.job_file) == (PATHS.socket, PATHS.work, PATHS.job_file)
    assert (config.storage_bytes, config.read_ahead, config.allow_private_addresses) == (5_000_000, 3, True)
    assert config.exclude_cidr == ["44.0.0.0/8"]
    assert (config.state_dir, config.drain_s) == (PATHS.bridge_state, 60)


@given(st.text(), st.text(), st.lists(st.text() | st.sampled_from(["{JOB_JSON}", "{WORK_DIR}", "{{WORK_DIR}}"])))
def test_placeholders_in_inserted_values_are_not_replaced(work_dir: str, job_json: str, template: list[str]) -> None:
    values = {"WORK_DIR": work_dir, "JOB_JSON": job_json}
    for before, after in zip(template, launch.executor_args(template, values), strict=True):
        if before == "{JOB_JSON}":
            assert after == job_json
        elif before == "{{WORK_DIR}}":
            assert after == "{" + work_dir + "}"
