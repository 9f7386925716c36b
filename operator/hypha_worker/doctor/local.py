"""Checks of this host: configuration, identity, executors, machine and work directory. They block."""

import json
import os
import resource
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hypha_contracts import descriptors
from hypha_contracts.findings import Finding, failure, ok, skipped, warning
from hypha_contracts.times import CERTIFICATE_EXPIRES_SOON
from hypha_network.errors import IdentityError
from hypha_network.identity import Identity
from hypha_worker import work_dir
from hypha_worker.config_file import ConfigError
from hypha_worker.doctor.sockets import find_exposed, try_socket
from hypha_worker.doctor.worker import Worker
from hypha_worker.runtimes.process import launch, limits, supervisor
from hypha_worker.runtimes.process.checks import executors, machine, tokens
from hypha_worker.runtimes.process.host import check_directories

_WORLD_READABLE: Final = 0o004


def configuration(worker: Worker) -> Iterator[Finding]:
    """Yield whether the configuration file can be used, and what is odd in it."""
    if isinstance(worker.loaded, ConfigError):
        yield failure(str(worker.loaded), "Correct it. The file that `hypha-worker init` writes explains every key.")
        return
    for text in worker.loaded.warnings:
        yield warning(text, "The node reads the file all the same.")
    if worker.config.telemetry_headers and worker.path.stat().st_mode & _WORLD_READABLE:
        yield warning(
            f"{worker.path} holds telemetry_headers and is readable by every user", f"Run `chmod o-r {worker.path}`."
        )
    yield ok(f"{worker.path} is valid")


def running_node(worker: Worker) -> Iterator[Finding]:
    """Yield whether a node runs in the work directory."""
    node = worker.running_node()
    if node is None:
        yield ok("no node runs with this work_dir")
    else:
        yield ok(f"a node runs with this work_dir (process {node.pid or 'in another namespace'}); it is left alone")


def certificate(worker: Worker) -> Iterator[Finding]:
    """Yield whether certificate, key, trust bundle and revocation lists can be loaded, and how long they are valid."""
    try:
        identity = worker.identity()
    except IdentityError as error:
        yield _identity_failure(str(error))
        return
    yield judge_validity(identity, datetime.now(UTC))


def judge_validity(identity: Identity, now: datetime) -> Finding:
    """Return whether the certificates expire soon."""
    left = identity.valid_until - now
    text = f"the certificate of {identity.peer_id} is valid until {identity.valid_until:%Y-%m-%d %H:%M} UTC"
    if left < CERTIFICATE_EXPIRES_SOON:
        remedy = "Renew it with the same key; a running node reloads it."
        return (failure if left.total_seconds() <= 0 else warning)(text, remedy)
    return ok(text)


def trust(worker: Worker) -> Iterator[Finding]:
    """Yield whether other nodes with the same trust bundle and revocation lists accept the certificate."""
    identity = worker.usable_identity()
    refusal = identity.own_refusal()
    if refusal:
        message, _, remedy = refusal.partition("; ")
        yield failure(
            f"the certificate: {message}",
            _sentence(remedy) or "Request a new certificate, or correct the revocation lists.",
        )
    for blemish in identity.blemishes(datetime.now(UTC)):
        yield warning(
            f"the certificate: {blemish}",
            "Get the current list from its authority." if "revocation" in blemish else "Request one that has it.",
        )
    if not refusal:
        lists = f", and {len(identity.crls)} revocation lists accept it" if identity.crls else ""
        yield ok(f"the trust bundle leads to the certificate{lists}")


def key(worker: Worker) -> Iterator[Finding]:
    """Yield whether only this user can read the key."""
    path = worker.config.key_pem
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        yield failure(f"{path}: {error.strerror}", "Correct key_pem.")
        return
    if mode & _WORLD_READABLE:
        yield warning(f"{path} is readable by every user (mode {mode:o})", f"Run `chmod 600 {path}`.")
    else:
        yield ok(f"{path} is private (mode {mode:o})")


def hub_token(worker: Worker) -> Iterable[Finding]:
    """Return whether the token that is lent to jobs can be read, and by nobody else."""
    return list(tokens.check(worker.host_config.jobs.hub_token)) or [skipped("hub_token is not set; jobs bring theirs")]


def terms(worker: Worker) -> Iterator[Finding]:
    """Yield what the worker offers and at which price."""
    config = worker.config
    offer = config.offer
    if offer.floor > offer.price and offer.strategy == "whole":
        yield warning(
            f"offer.floor {offer.floor:g} is above offer.price {offer.price:g}, so no offer is ever made at the price",
            "Lower offer.floor to offer.price or less.",
        )
    if config.suspend:
        yield warning("suspend is set, so the worker makes no offers", "Unset suspend, and reload the worker.")
    names = ", ".join(str(executor.descriptor) for executor in config.executors)
    yield ok(f"it offers {names} for bids of {offer.floor:g} or more (strategy {offer.strategy})")


def programs(worker: Worker) -> Iterable[Finding]:
    """Return whether the programs of executors can be started."""
    return executors.check_programs(worker.host_config.executors, worker.environ)


def placeholders(worker: Worker) -> Iterable[Finding]:
    """Return whether the placeholders of executors are right."""
    configured = worker.host_config.executors
    return [*executors.check_placeholders(configured), *executors.check_options_of_uv(configured)]


def files(worker: Worker) -> Iterable[Finding]:
    """Return whether the files that executors name can be read."""
    found = list(executors.check_files(worker.host_config.executors))
    return found or [skipped("no executor names an Accelerate configuration")]


def platform(_worker: Worker) -> Iterator[Finding]:
    """Yield whether the node runs on this operating system."""
    yield machine.judge_platform(sys.platform, has_pidfd=hasattr(os, "pidfd_open"))


def space(worker: Worker) -> Iterator[Finding]:
    """Yield whether the disk of the work directory has space left."""
    yield machine.judge_space(machine.measure(worker.host_config.work_dir, ()).disk_free_gb)


def open_files(_worker: Worker) -> Iterator[Finding]:
    """Yield whether this user may open enough files."""
    yield machine.judge_descriptors(descriptors.limit())


def file_size(worker: Worker) -> Iterator[Finding]:
    """Yield whether this user may write large files."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    yield machine.judge_file_size(hard, worker.host_config.capacity)


def job_limits(worker: Worker) -> Iterator[Finding]:
    """Yield whether control groups can limit jobs."""
    node = worker.running_node()
    usable = limits.usable_controllers(node.proc) if node else limits.usable_controllers()
    yield machine.judge_limits(wanted=worker.host_config.jobs.limits, usable=usable)


def access(worker: Worker) -> Iterator[Finding]:
    """Yield whether this user can write to the work directory."""
    config = worker.config
    if config.kubernetes is None:
        yield from check_directories(config, worker.process.work_dir)
    else:
        yield work_dir.judge(work_dir.inspect(config.work_dir))


def path_length(worker: Worker) -> Iterator[Finding]:
    """Yield whether the path of the work directory is short enough."""
    yield launch.judge_path_length(worker.process.work_dir)


def sockets(worker: Worker) -> Iterator[Finding]:
    """Yield whether sockets work in the work directory, and whether those in it are private."""
    directory = worker.process.work_dir
    if not os.access(directory, os.X_OK):
        yield skipped("the work directory does not exist yet, or this user may not enter it")
        return
    for path, reason in find_exposed(directory):
        yield failure(f"{path} {reason}", f"Run `chmod 600 {path}`, and find out who changed it.")
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=directory) as temporary:
            try_socket(Path(temporary, "bridge.sock"))
    except OSError as error:
        yield failure(
            f"a Unix socket cannot be used in {directory}: {error.strerror or error}",
            "Choose a work_dir on a local file system.",
        )
    else:
        yield ok(f"Unix sockets work in {directory} and are private")


def job_logs(worker: Worker) -> Iterator[Finding]:
    """Yield where the logs of ended jobs are, and how the last one ended."""
    logs = worker.process.ended_logs
    if not logs.keep_s:
        yield skipped("no logs of ended jobs are kept (jobs.keep_ended_s = 0)")
        return
    kept = logs.newest_first()
    if not kept:
        yield ok(f"no job has ended lately; the logs of ended jobs are kept in {logs.directory} for {logs.keep_s:g} s")
        return
    ended_at, path = kept[0]
    try:
        last = supervisor.Exit(**json.loads((path / supervisor.EXIT_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        yield warning("the last job ended, and its supervisor did not record how", f"Read the logs in {path}.")
        return
    if last.finished:
        yield ok(f"the last job finished; the logs of {len(kept)} jobs are in {logs.directory}")
    else:
        ago_s = time.time() - ended_at
        yield warning(f"the last job failed {ago_s:.0f} s ago: {last.reason}", f"Read {path / supervisor.OUTPUT_FILE}.")


def _identity_failure(text: str) -> Finding:
    message, _, remedy = text.partition("; ")
    return failure(message, _sentence(remedy) or "Correct cert_pem, key_pem, trust_pem or crls_pem.")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else ""
