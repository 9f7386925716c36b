"""Configuration, commands and environments of a job's processes. Pure functions."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hypha_contracts.bridge_config import BridgeConfig, CacheConfig, ConnectorConfig, LentToken
from hypha_contracts.findings import Finding, failure, ok
from hypha_contracts.proxies import Proxies
from hypha_contracts.times import DRAIN_S, KEEP_ENDED_S
from hypha_contracts.units import devices_needed
from hypha_worker.job import LaunchError
from hypha_worker.runtimes.process.ended_logs import EndedLogs
from hypha_worker.state_dir import LEDGER_FILE, STATUS_SOCKET

PARAMETER_SERVER: Final = (
    *(sys.executable, "-m", "hypha_parameter_server"),
    *("--socket", "{SOCKET_PATH}", "--work-dir", "{WORK_DIR}", "--job-file", "{JOB_FILE}"),
)
"""The command of executors with the runtime `parameter-server`."""

PLACEHOLDERS: Final = ("SOCKET_PATH", "WORK_DIR", "JOB_JSON", "JOB_FILE")
"""The names that the node replaces in an executor's arguments, in braces."""

LOCK: Final = "node.lock"
CONNECTOR_SOCKET: Final = "connector.sock"
JOBS: Final = "jobs"
LOGS: Final = "logs"
STATE_FILES: Final = (LOCK, CONNECTOR_SOCKET, STATUS_SOCKET, JOBS, LOGS, LEDGER_FILE)
"""The files and directories in the work directory that a node must be able to write to."""

TEMPORARY: Final = "tmp"
"""The job's directory for temporary files, in its work directory."""

BRIDGE: Final = (sys.executable, "-m", "hypha_bridge")

_MAX_SOCKET_PATH_BYTES: Final = 107  # sun_path, without its closing zero
_MAX_TMPDIR_BYTES: Final = _MAX_SOCKET_PATH_BYTES - len("/pymp-12345678/listener-12345678")  # of multiprocessing
_MAX_VARIABLE_BYTES: Final = 128 * 1024 - 1  # one argument or variable (MAX_ARG_STRLEN), without its closing zero
_PASSED_ON: Final = re.compile(
    r"PATH|LANG|LANGUAGE|LC_\w+|TZ|TERM|TMPDIR|LD_LIBRARY_PATH|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE"
    r"|XDG_CACHE_HOME|PYTHON(UNBUFFERED|UTF8|NOUSERSITE|WARNINGS)"
    r"|(CUDA|NVIDIA|NCCL|ROCR|HIP|HSA|GLOO|TORCH|PYTORCH|TORCHINDUCTOR|TRITON|ACCELERATE|OMP|MKL|OPENBLAS|HF)_\w+"
)
_PROXIES: Final = re.compile(r"(https?|all|no)_proxy", re.IGNORECASE)
_INSTALLER: Final = re.compile(r"UV_(?!PUBLISH_)\w+|NETRC|CURL_CA_BUNDLE")
"""What uv needs to install an executor, such as UV_DEFAULT_INDEX. The values may hold passwords for the index."""
_SECRET: Final = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|PRIVATE|API_?KEY|AUTH", re.IGNORECASE)


@dataclass(frozen=True)
class JobPaths:
    """The files and directories of a job.

    Attributes:
        control: the control directory, which the job never sees.
        work: the job's own work directory.
    """

    control: Path
    work: Path

    @property
    def socket(self) -> Path:
        """The socket of the bridge."""
        return self.work / "bridge.sock"

    @property
    def job_file(self) -> Path:
        """The specification that the executor reads."""
        return self.work / "job.json"

    @property
    def record(self) -> Path:
        """The record of the job, which outlives the node."""
        return self.control / "job.json"

    @property
    def token_file(self) -> Path:
        """The bridge's token for the connector API."""
        return self.control / "token"

    @property
    def bridge_config(self) -> Path:
        """The bridge's configuration."""
        return self.control / "bridge.json"

    @property
    def bridge_state(self) -> Path:
        """The directory in which the bridge stages files."""
        return self.control / "bridge"


@dataclass(frozen=True)
class ExecutorCommand:
    """How an executor is started.

    Attributes:
        args: program and arguments, in which the placeholders are replaced.
        environment: variables in addition to those of every job.
    """

    args: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProcessConfig:
    """The configuration of the process runtime.

    Attributes:
        work_dir: contains the connector's socket and all files of the jobs.
        executors: commands by descriptor (`class/name`).
        bridge: the bridge's command without its option `--config FILE`.
        read_ahead: number of slices that the bridge fetches before the executor asks for them.
        allow_private_addresses: whether jobs may download from private, local and metadata addresses.
        exclude_cidr: networks from which jobs may never download.
        proxy: the proxies of downloads.
        trust_pem: authorities that downloads trust besides the public ones.
        hub_token: the token that the owner lends to jobs.
        cache: the directory of public files of the model hub.
        connector_deadline_s: how long the bridge retries while the node does not answer.
        start_s: how long the bridge may take until it listens.
        grace_s: how long a job may outlive its lease while the node is gone.
        kill_after_s: time from SIGTERM to SIGKILL.
        drain_s: how long sends in flight may take after the executor has succeeded.
        log_bytes: size of each of the two files of a job's output.
        limits: whether jobs are limited to the resources of their leases.
        gpu_device_gb: memory of one GPU, if leases share none; otherwise 0.
        output_dir: where executors keep trained models and predictions.
        output_max_bytes: the size that it may reach.
        log_dir: contains the logs of ended jobs; by default `logs` in `work_dir`.
        keep_ended_s: how long the logs of ended jobs are kept.
        ended_log_bytes: the size of all logs of ended jobs together.
    """

    work_dir: Path
    executors: Mapping[str, ExecutorCommand]
    bridge: tuple[str, ...] = BRIDGE
    read_ahead: int = 1
    allow_private_addresses: bool = False
    exclude_cidr: Sequence[str] = ()
    proxy: Proxies | None = None
    trust_pem: Path | None = None
    hub_token: LentToken | None = None
    cache: CacheConfig | None = None
    connector_deadline_s: float = 60.0
    start_s: float = 60.0
    grace_s: float = 5.0
    kill_after_s: float = 5.0
    drain_s: float = DRAIN_S
    log_bytes: int = 4 * 1024 * 1024
    limits: bool = True
    gpu_device_gb: float = 0.0
    output_dir: Path | None = None
    output_max_bytes: int = 0
    log_dir: Path | None = None
    keep_ended_s: float = KEEP_ENDED_S
    ended_log_bytes: int = 1024**3

    @property
    def connector_socket(self) -> Path:
        """The socket of the connector API."""
        return self.work_dir / CONNECTOR_SOCKET

    @property
    def jobs_dir(self) -> Path:
        """The directory of all control directories."""
        return self.work_dir / JOBS

    @property
    def output_variables(self) -> dict[str, str]:
        """The variables that tell executors where to keep trained models and predictions."""
        if self.output_dir is None:
            return {}
        return {"OUTPUT_DIR": str(self.output_dir), "OUTPUT_MAX_BYTES": str(self.output_max_bytes)}

    @property
    def ended_logs(self) -> EndedLogs:
        """The logs of ended jobs."""
        return EndedLogs(self.log_dir or self.work_dir / LOGS, self.keep_ended_s, self.ended_log_bytes)


def judge_path_length(work_dir: Path) -> Finding:
    """Return whether the paths of sockets in a work directory are short enough."""
    room = _MAX_SOCKET_PATH_BYTES - len("/hypha-12345678-1234-1234-1234-123456789012/bridge.sock")
    length = len(str(work_dir).encode())
    if length > room:
        return failure(
            f"work_dir {work_dir}: longer than {room} bytes, which is too long for Unix sockets",
            "Choose a shorter path.",
        )
    return ok(f"its path has {length} of at most {room} bytes")


def lease_gpus(gpu_gb: float, gpu_device_gb: float) -> int:
    """Return how many GPUs a lease has at least: one for any GPU memory, if leases share GPUs."""
    if not gpu_gb:
        return 0
    return devices_needed(gpu_gb, gpu_device_gb) if gpu_device_gb else 1


def variables(paths: JobPaths, job_json: str) -> dict[str, str]:
    """Return the placeholders and their values."""
    return dict(zip(PLACEHOLDERS, (str(paths.socket), str(paths.work), job_json, str(paths.job_file)), strict=True))


def executor_args(template: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Replace the placeholders, no other braces. LaunchError if an argument gets too long for the kernel."""
    known = re.compile("|".join(f"{{{name}}}" for name in values))
    args = [known.sub(lambda match: values[match[0][1:-1]], arg) for arg in template]
    if any(len(arg.encode()) > _MAX_VARIABLE_BYTES for arg in args):
        raise LaunchError(
            f"the job is too long for an argument ({_MAX_VARIABLE_BYTES} bytes). "
            "In the executor's args, use {JOB_FILE} instead of {JOB_JSON}."
        )
    return args


def executor_environment(
    host: Mapping[str, str], values: Mapping[str, str], threads: int | None, extra: Mapping[str, str]
) -> dict[str, str]:
    """Return the executor's environment: the host's variables that it needs, and the placeholders.

    It holds no secrets of the host, apart from passwords in the addresses of proxies and package indexes.
    """
    work_dir = values["WORK_DIR"]
    temporary = f"{work_dir}/{TEMPORARY}"
    environment = _passed_on(host) | {k: v for k, v in host.items() if _INSTALLER.fullmatch(k)}
    home = host.get("HOME")
    if home:  # jobs share the programs that uv has downloaded
        environment.setdefault("UV_CACHE_DIR", f"{home}/.cache/uv")
        environment.setdefault("UV_PYTHON_INSTALL_DIR", f"{home}/.local/share/uv/python")
    environment["HOME"] = work_dir
    environment.setdefault("PYTHONUNBUFFERED", "1")  # or a job that is killed takes its last lines with it
    if len(temporary.encode()) <= _MAX_TMPDIR_BYTES:
        environment["TMPDIR"] = temporary
    if threads:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    environment.update(extra)
    environment.update({k: v for k, v in values.items() if len(f"{k}={v}".encode()) <= _MAX_VARIABLE_BYTES})
    return environment


def bridge_environment(host: Mapping[str, str], work_dir: Path) -> dict[str, str]:
    """Return the bridge's environment: the host's variables that it needs, and where it works."""
    return _passed_on(host) | {"HOME": host.get("HOME", "/"), "WORK_DIR": str(work_dir)}


def _passed_on(host: Mapping[str, str]) -> dict[str, str]:
    needed = {k: v for k, v in host.items() if _PASSED_ON.fullmatch(k) and not _SECRET.search(k)}
    return needed | {k: v for k, v in host.items() if _PROXIES.fullmatch(k)}


def bridge_config(paths: JobPaths, config: ProcessConfig, storage_bytes: int | None) -> BridgeConfig:
    """Return the configuration of a job's bridge."""
    return BridgeConfig(
        job_file=paths.job_file,
        work_dir=paths.work,
        socket=paths.socket,
        connector=ConnectorConfig(
            uds=config.connector_socket, token_file=paths.token_file, deadline_s=config.connector_deadline_s
        ),
        state_dir=paths.bridge_state,
        storage_bytes=storage_bytes,
        read_ahead=config.read_ahead,
        allow_private_addresses=config.allow_private_addresses,
        exclude_cidr=list(config.exclude_cidr),
        proxy=config.proxy,
        trust_pem=config.trust_pem,
        hub_token=config.hub_token,
        cache=config.cache,
        drain_s=config.drain_s,
    )
