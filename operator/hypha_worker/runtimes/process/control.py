"""The directories of the jobs of a host.

The node makes a control directory first and removes it last. It writes the job's record first and removes it first. So
the directory shows the state of the job at any moment:

- A record without a supervisor means that the launch was interrupted.
- A held lock means that the job runs.
- An `exit.json` means that the job ended.
- Otherwise the supervisor was killed.

The node may be killed between any two steps, and the next node continues from there. These functions block, so the
runtime calls them in threads.
"""

import contextlib
import json
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import UUID

from hypha_contracts import names, trace_context
from hypha_messages.job import JobSpec
from hypha_messages.types import Message, PeerId, Resources, Uuid
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_worker.files import replace_file
from hypha_worker.job import Failed, Finished, Job, LaunchError
from hypha_worker.runtimes.process import directories, launch, limits, processes, supervised, supervisor
from hypha_worker.runtimes.process.launch import JobPaths, ProcessConfig
from hypha_worker.runtimes.process.supervised import Supervised

logger = logging.getLogger(__name__)

_KILL_FOR_S: Final = 10.0
_LAST_LINES: Final = 20
_WORK_PREFIX: Final = "hypha-"


class JobRecord(Message):
    """The record of a job in its control directory. The deadline is in a file beside it."""

    task_id: Uuid
    lease_id: Uuid
    scheduler: PeerId
    spec: JobSpec
    resources: Resources
    price: float = 0.0
    accepted: float | None = None
    began: float = 0.0
    traceparent: str | None = None
    token: str


@dataclass(frozen=True)
class FoundJob:
    """A job of an earlier node. `supervised` is None if it has ended."""

    job: Job
    token: str = field(repr=False)
    supervised: Supervised | None


class ControlDirectories:
    """The control directories of all jobs below one work directory. Later jobs run by the current `config`."""

    def __init__(self, config: ProcessConfig) -> None:
        self.config = config
        self._log = RateLimitedLogger(logger)
        self._limits_log = RateLimitedLogger(logger)
        self._jobs_dir = config.jobs_dir
        self._jobs_dir.mkdir(mode=0o700, exist_ok=True)
        self._hierarchies = limits.find_hierarchies() if config.limits else ()

    def paths(self, task_id: UUID | str) -> JobPaths:
        """Return the paths of a job."""
        return JobPaths(self._jobs_dir / str(task_id), self.config.work_dir / f"{_WORK_PREFIX}{task_id}")

    def launch(self, job: Job, token: str) -> Supervised:
        """Record the job and start its supervisor. LaunchError if that fails, in which case nothing of it is left."""
        paths = self.paths(job.task_id)
        if os.path.lexists(paths.work):  # beside a record the node would treat it as its own
            raise LaunchError(f"{paths.work} exists already and the node did not make it. Move it elsewhere.")
        try:
            directories.make_marked(paths.control)
        except OSError as error:
            raise LaunchError(f"task {job.task_id} cannot be recorded: {error}") from error
        try:
            record = JobRecord(**vars(job), token=token)
            replace_file(paths.control / supervisor.DEADLINE_FILE, repr(job.deadline))
            replace_file(paths.record, record.model_dump_json())
            return self._start(record, paths)
        except LaunchError:
            self.remove(paths)
            raise
        except OSError as error:
            self.remove(paths)
            raise LaunchError(f"task {job.task_id} cannot be set up in {self.config.work_dir}: {error}") from error

    def adopt(self) -> list[FoundJob]:
        """Find the jobs of an earlier node, oldest first, and remove its directories that belong to no job."""
        controls = [path for path in self._jobs_dir.iterdir() if directories.is_of_node(path)]
        controls.sort(key=lambda control: _modified_at(self.paths(control.name).record))
        found = [adopted for control in controls if (adopted := self._adopt(control))]
        for path in self.config.work_dir.glob(f"{_WORK_PREFIX}*"):
            task_id = path.name.removeprefix(_WORK_PREFIX)
            if directories.is_of_node(path, _WORK_PREFIX) and not self.paths(task_id).control.exists():
                logger.info("removing %s, which belongs to no job", path)
                directories.remove_tree(path)
        return found

    def conclude(self, task_id: UUID) -> Finished | Failed:
        """Kill and remove everything but the record of a job whose supervisor is gone. Return how the job ended."""
        paths = self.paths(task_id)
        self._clear(paths)
        try:
            ended = supervisor.Exit(**json.loads((paths.control / supervisor.EXIT_FILE).read_text()))
        except (OSError, ValueError, TypeError):
            return Failed(
                task_id, _reason_without_exit(paths), _last_lines(paths.control / supervisor.SUPERVISOR_LOG_FILE)
            )
        if ended.finished:
            self._report_results(paths)
        if ended.finished and ended.undelivered:
            self._log.warning(f"job {task_id}", "it finished, but its bridge did not deliver all files")
        return Finished(task_id) if ended.finished else Failed(task_id, ended.reason, tuple(ended.last_lines))

    def _report_results(self, paths: JobPaths) -> None:
        """Log where the trained model or the predictions of a finished job are, if they were kept."""
        with contextlib.suppress(OSError, ValueError):
            record = JobRecord.model_validate_json(paths.record.read_bytes())
            if self.config.output_dir and (kept := self.config.output_dir / str(record.spec.job_id)).is_dir():
                logger.info("job %s: its results are in %s", record.task_id, kept)

    def remove(self, paths: JobPaths) -> None:
        """Remove everything of a job but its logs, which are kept for a while."""
        self._clear(paths)
        paths.record.unlink(missing_ok=True)
        self.config.ended_logs.keep(paths.control)
        directories.remove_tree(paths.control)

    def _clear(self, paths: JobPaths) -> None:
        """Kill and remove everything of a job except its control directory."""
        groups = {str(hierarchy.group(paths.control.name)) for hierarchy in self._hierarchies}
        with contextlib.suppress(OSError, ValueError, TypeError):  # there may be no plan yet, or no longer
            groups.update(supervisor.Plan.from_json((paths.control / supervisor.PLAN_FILE).read_text()).groups)
        until = time.monotonic() + _KILL_FOR_S
        while (left := processes.strays(str(paths.work)) | processes.members(groups)) and time.monotonic() < until:
            processes.kill(left)
            time.sleep(0.005)
        if left:
            self._log.warning(str(paths.work), "its processes cannot be killed: %s", sorted(left))
        limits.remove_groups([Path(group) for group in groups])
        # The job may have removed the marker.
        if paths.record.exists() or directories.is_of_node(paths.work, _WORK_PREFIX):
            directories.remove_tree(paths.work)

    def _start(self, record: JobRecord, paths: JobPaths) -> Supervised:
        """Prepare the directories and start the supervisor. Continues an interrupted launch, too."""
        applied = self._apply_limits(record)
        directories.remove_tree(paths.work)
        directories.make_marked(paths.work)
        (paths.work / launch.TEMPORARY).mkdir(mode=0o700)
        job_json = record.spec.model_dump_json()
        replace_file(paths.job_file, job_json, durable=False)
        replace_file(paths.token_file, record.token, durable=False)
        bridge = launch.bridge_config(paths, self.config, applied.storage_bytes)
        replace_file(paths.bridge_config, bridge.to_json(), durable=False)
        plan = self._plan(record, paths, applied, job_json)
        replace_file(paths.control / supervisor.PLAN_FILE, plan.to_json(), durable=False)
        return supervised.start(paths)

    def _apply_limits(self, record: JobRecord) -> limits.Limits:
        if not self.config.limits:
            return limits.Limits()
        planned = limits.plan_limits(record.resources, record.task_id, self._hierarchies)
        try:
            limits.create_groups(planned.groups)
        except OSError as error:
            self._log.warning(f"job {record.task_id}", "no control groups for it: %s", error)
            planned = limits.plan_limits(record.resources, record.task_id, ())
        self._limits_log.info(f"limits of job {record.task_id}", "%s", planned)
        if planned.unlimited:
            unlimited = " and ".join(planned.unlimited)
            self._limits_log.warning(f"job {record.task_id}", "this host cannot limit its %s", unlimited)
        return planned

    def _plan(self, record: JobRecord, paths: JobPaths, applied: limits.Limits, job_json: str) -> supervisor.Plan:
        executor = self.config.executors.get(str(record.spec.descriptor))
        if executor is None:
            raise LaunchError(f"the configuration has no executor {record.spec.descriptor}. Add it to [[executors]].")
        values = launch.variables(paths, job_json)
        trace = {trace_context.VARIABLE: record.traceparent} if record.traceparent else {}
        return supervisor.Plan(
            work_dir=str(paths.work),
            socket=str(paths.socket),
            bridge_state=str(paths.bridge_state),
            bridge=supervisor.Command(
                args=[*self.config.bridge, "--config", str(paths.bridge_config)],
                env=launch.bridge_environment(os.environ, paths.work) | trace,
            ),
            executor=supervisor.Command(
                args=launch.executor_args(executor.args, values),
                env=launch.executor_environment(
                    os.environ, values, applied.threads, self.config.output_variables | dict(executor.environment)
                )
                | {names.LEASE_GPUS: str(launch.lease_gpus(record.resources.gpu, self.config.gpu_device_gb)), **trace},
            ),
            rlimits=dict(applied.rlimits),
            groups=[str(group.path) for group in applied.groups],
            oom_counter=str(applied.oom_counter) if applied.oom_counter else None,
            storage_bytes=applied.storage_bytes,
            start_s=self.config.start_s,
            grace_s=self.config.grace_s,
            kill_after_s=self.config.kill_after_s,
            drain_s=self.config.drain_s + self.config.kill_after_s,  # longer than the bridge's own limit
            log_bytes=self.config.log_bytes,
        )

    def _adopt(self, control: Path) -> FoundJob | None:
        """Return the job of one control directory. None if it holds no job, in which case it is removed."""
        paths = self.paths(control.name)
        try:
            record = JobRecord.model_validate_json(paths.record.read_bytes())
            deadline = float((control / supervisor.DEADLINE_FILE).read_text())
        except (OSError, ValueError) as error:
            logger.info("removing %s, which has no readable record: %s", control, error)
            self.remove(paths)
            return None
        fields = {name: getattr(record, name) for name in JobRecord.model_fields if name != "token"}
        job = Job(**fields, deadline=deadline)
        return FoundJob(job, record.token, self._resume(record, paths, deadline))

    def _resume(self, record: JobRecord, paths: JobPaths, deadline: float) -> Supervised | None:
        """Find the supervisor of a recorded job, or start it if the launch was interrupted. None if the job ended."""
        if running := supervised.find(paths):
            return running
        started = (paths.control / supervisor.PID_FILE).exists()
        if started or (paths.control / supervisor.STOP_FILE).exists() or time.time() > deadline:
            return None
        logger.info("continuing the interrupted launch of job %s", record.task_id)
        try:
            return self._start(record, paths)
        except (OSError, LaunchError) as error:
            self._log.warning(f"job {record.task_id}", "it cannot be launched: %s", error)
            return None


def _modified_at(path: Path) -> float:
    """Return when a file was last written, in seconds since the epoch, or 0 if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _reason_without_exit(paths: JobPaths) -> str:
    with contextlib.suppress(OSError):
        return (paths.control / supervisor.STOP_FILE).read_text()
    if (paths.control / supervisor.PID_FILE).exists():
        return "its supervisor was killed"
    return "its supervisor could not be started"


def _last_lines(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(errors="replace").splitlines()[-_LAST_LINES:])
    except OSError:
        return ()
