"""Each fault of a host is caused for real, and its check finds it and names the remedy."""

import json
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hypha_contracts.findings import Finding, Mark
from hypha_devnet.certs import create_crl, create_node, write_node
from hypha_worker import work_dir
from hypha_worker.config_file import load
from hypha_worker.doctor.checks import CHECKS
from hypha_worker.runtimes.process import launch, limits
from hypha_worker.runtimes.process.checks import machine
from hypha_worker.runtimes.process.host import check_at_start
from hypha_worker.state_dir import find_state_dir
from support import jobs
from support.certs import Pki
from support.examined import examine, problem, write_config
from support.rig import open_rig

pytestmark = pytest.mark.anyio

SKIPPED = {"executors.files", "executors.modules", "executors.wheels", "executors.devices", "sources.hub_token"}
SERVICES = {
    "network.gateways",
    "network.join",
    "network.reach",
    "market.topic",
    "market.requests",
    "sources.hub",
    "telemetry.collector",
}
OF_THIS_MACHINE = {"machine.clock", "machine.descriptors", "machine.limits"}
HOST = {check.id for check in CHECKS} - SERVICES


@pytest.mark.parametrize("check", sorted(HOST - SKIPPED - OF_THIS_MACHINE))
async def test_a_sound_worker_passes(directory: Path, pki: Pki, check: str) -> None:
    path = write_config(directory, pki)
    (directory / "work").mkdir(0o700)
    findings = await examine(path, check)
    assert findings
    assert {finding.mark for finding in findings} == {"ok"}, findings


async def test_an_unknown_key_is_a_failure_and_other_checks_are_skipped(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki, workdir="elsewhere")
    found = await problem(path, "configuration.file")
    assert found.mark == "failure"
    assert "workdir: unknown key. Did you mean work_dir?" in found.message
    assert "hypha-worker init" in found.remedy
    assert {f.mark for check in HOST for f in await examine(path, check)} == {"failure", "skipped", "ok"}
    assert [f.message for f in await examine(path, "work_dir.access")] == ["the configuration cannot be used"]


@pytest.mark.parametrize(
    ("content", "mode", "mark", "says"),
    [
        (b"hf_mine\n", 0o600, "ok", "is private (mode 600)"),
        (b"hf_mine", 0o640, "failure", "is open to other users (mode 640)"),
        (b"hf_mine", 0o604, "failure", "is open to other users (mode 604)"),
        (b"token: hf_mine", 0o600, "failure", "does not hold a token"),
        (b"", 0o600, "failure", "does not hold a token"),
        (b"\xff", 0o600, "failure", "not text"),
        (None, 0o600, "failure", "No such file or directory"),
    ],
)
async def test_a_lent_token_must_be_readable_and_private(
    directory: Path, pki: Pki, content: bytes | None, mode: int, mark: Mark, says: str
) -> None:
    token = directory / "hub-token"
    if content is not None:
        token.write_bytes(content)
        token.chmod(mode)
    lent = {"file": token.name, "repositories": ["digits/gated"]}
    path = write_config(directory, pki, jobs={"hub_token": lent})
    [found] = await examine(path, "sources.hub_token")
    assert (found.mark, f"hub_token.file {token}" in found.message, says in found.message) == (mark, True, True)
    assert "hf_mine" not in str(found)
    at_start = [f for f in check_at_start(load(path, {}).config, directory / "work", {}) if "hub_token" in f.message]
    assert at_start == [found]


async def test_a_key_below_a_table_is_a_warning(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki, resources={"telemetry_endpoint": "http://127.0.0.1:1"})
    found = await problem(path, "configuration.file")
    assert (found.mark, "Move it above the first table" in found.message) == ("warning", True)


async def test_a_configuration_with_secrets_that_everybody_can_read_is_a_warning(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki, telemetry_headers="authorization=s3cret")
    path.chmod(0o644)
    found = await problem(path, "configuration.file")
    assert found.remedy == f"Run `chmod o-r {path}`."
    assert "s3cret" not in str(found)


async def test_a_missing_key_and_an_expired_certificate_are_failures(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki)
    now = datetime.now(UTC)
    expired = create_node(pki.organisation, "worker", not_before=now - timedelta(9), not_after=now - timedelta(1))
    write_node(expired, directory, "worker")
    found = await problem(path, "identity.certificate")
    assert (found.mark, found.remedy) == ("failure", "Renew it.")
    assert "the certificate expired on" in found.message
    assert [f.mark for f in await examine(path, "identity.trust")] == ["skipped"]
    (directory / "worker-key.pem").unlink()
    found = await problem(path, "identity.certificate")
    assert "worker-key.pem: No such file or directory" in found.message
    assert found.remedy == "Check the path and its permissions."


async def test_a_key_of_another_certificate_is_a_failure(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki)
    (directory / "worker-key.pem").write_bytes(pki.node("other").key_pem)
    found = await problem(path, "identity.certificate")
    assert "does not belong to the first certificate" in found.message
    assert "Use the pair that was issued together" in found.remedy


async def test_a_certificate_that_is_not_valid_yet_points_to_the_clock(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki)
    later = create_node(pki.organisation, "worker", not_before=datetime.now(UTC) + timedelta(1))
    write_node(later, directory, "worker")
    assert (await problem(path, "identity.certificate")).remedy == "Check the clock."


async def test_a_certificate_that_expires_soon_is_a_warning(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki)
    write_node(create_node(pki.organisation, "worker", not_after=datetime.now(UTC) + timedelta(2)), directory, "worker")
    found = await problem(path, "identity.certificate")
    assert (found.mark, found.remedy) == ("warning", "Renew it with the same key; a running node reloads it.")


async def test_a_trust_bundle_of_another_network_is_a_failure(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki)
    (directory / "worker-trust.pem").write_bytes(Pki().root.trust_pem)
    found = await problem(path, "identity.trust")
    assert (found.mark, "the trust bundle does not lead to it" in found.message) == ("failure", True)
    assert found.remedy.startswith("Add its CA there")


async def test_a_revoked_certificate_is_a_failure_and_an_old_list_a_warning(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki, crls_pem="crls.pem")
    node = pki.node("worker")
    write_node(node, directory, "worker")
    (directory / "crls.pem").write_bytes(pki.crls(node))
    assert "was revoked by" in (await problem(path, "identity.trust")).message
    stale = create_crl(pki.organisation, next_update=datetime.now(UTC) - timedelta(hours=1))
    (directory / "crls.pem").write_bytes(create_crl(pki.root) + stale)
    found = await problem(path, "identity.trust")
    assert (found.mark, found.remedy) == ("warning", "Get the current list from its authority.")


async def test_a_key_that_everybody_can_read_is_a_warning(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki)
    (directory / "worker-key.pem").chmod(0o644)
    assert (await problem(path, "identity.key")).remedy == f"Run `chmod 600 {directory / 'worker-key.pem'}`."


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"cpu": 4000}, "the worker offers 4000 cores, and this machine has"),
        ({"memory": 1e6}, "the worker offers 1e+06 GB of memory, and this machine has"),
        ({"storage": 1e9}, "the worker offers 1e+09 GB of storage, and this machine has"),
        ({"gpu": 1e5}, "the worker offers 100000 GB of GPU memory, and this machine has"),
    ],
)
async def test_more_resources_than_the_machine_has_are_a_warning(
    directory: Path, pki: Pki, resources: dict[str, float], words: str
) -> None:
    found = await problem(write_config(directory, pki, resources=resources), "machine.resources")
    (name,) = resources
    assert found.mark == "warning"
    assert words in found.message
    assert found.remedy.startswith(f"Lower {name} in [resources]")


def test_a_quota_of_the_control_group_is_what_the_machine_has(tmp_path: Path) -> None:
    proc, group = tmp_path / "proc", tmp_path / "mount" / "system" / "worker"
    proc.mkdir()
    group.mkdir(parents=True)
    (proc / "cgroup").write_text("0::/system/worker\n")
    (proc / "mountinfo").write_text(f"1 2 0:3 / {tmp_path / 'mount'} rw - cgroup2 cgroup2 rw\n")
    (group / "cpu.max").write_text("max 100000\n")
    (group.parent / "cpu.max").write_text("250000 100000\n")
    (group / "memory.max").write_text("2000000000\n")
    assert limits.find_quota(proc) == limits.Quota(2.5, 2e9)


async def test_few_descriptors_are_a_warning(directory: Path, pki: Pki) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
    try:
        found = await problem(write_config(directory, pki), "machine.descriptors")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (found.mark, "LimitNOFILE=" in found.remedy) == ("warning", True)


def in_child(do: Callable[[], Finding], user: int | None = None) -> Finding:
    """Return the finding of a child process, which may lower its limits and become another user."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if user is not None:
                os.setuid(user)
            found = do()
            os.write(writer, json.dumps([found.mark, found.message, found.remedy]).encode())
        except BaseException as error:
            os.write(writer, json.dumps(["error", repr(error)]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as answer:
        return Finding(*json.loads(answer.read()))


def test_a_limit_on_the_size_of_files_below_the_storage_is_a_warning() -> None:
    def judge() -> Finding:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
        return machine.judge_file_size(resource.getrlimit(resource.RLIMIT_FSIZE)[1], jobs.job().resources)

    found = in_child(judge)
    assert (found.mark, "LimitFSIZE=" in found.remedy) == ("warning", True)


async def test_a_host_without_control_groups_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/system/worker\n")
    (tmp_path / "mountinfo").write_text(f"1 2 0:3 / {tmp_path / 'nowhere'} rw - cgroup2 cgroup2 rw\n")
    found = machine.judge_limits(wanted=True, usable=limits.usable_controllers(tmp_path))
    assert (found.mark, "Delegate=cpu memory pids" in found.remedy) == ("warning", True)
    assert "memory, cpu, pids" in found.message


def test_another_system_than_linux_is_a_failure() -> None:
    found = machine.judge_platform("darwin", has_pidfd=False)
    assert (found.mark, found.message) == ("failure", "the node runs on Linux 5.3 or newer only")


@pytest.mark.parametrize("work", ["/proc/self", "worker.toml", "worker.toml/work"])
async def test_a_work_dir_that_nobody_can_write_to_is_a_failure(directory: Path, pki: Pki, work: str) -> None:
    found = await problem(write_config(directory, pki, work_dir=work), "work_dir.access")
    assert (found.mark, found.remedy.startswith("Choose a directory that user")) == ("failure", True)


async def test_a_log_dir_that_nobody_can_write_to_is_a_failure(directory: Path, pki: Pki) -> None:
    found = await problem(write_config(directory, pki, jobs={"log_dir": "/proc/self"}), "work_dir.access")
    assert (found.mark, found.message) == ("failure", "log_dir /proc/self: No such file or directory")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_work_dir_or_file_of_another_user_is_a_failure(directory: Path) -> None:
    def judge(path: Path, *names: str) -> Finding:
        return in_child(lambda: work_dir.judge(work_dir.inspect(path, names)), user=65534)

    directory.chmod(0o755)
    found = judge(directory)
    assert (found.mark, "Permission denied" in found.message) == ("failure", True)
    assert "Choose a directory that user nobody can write to" in found.remedy
    found = judge(directory / "new")
    assert (found.mark, "is not writable" in found.message) == ("failure", True)
    directory.chmod(0o777)
    (directory / "node.lock").write_text("")
    (directory / "node.lock").chmod(0o600)
    found = judge(directory, *launch.STATE_FILES)
    assert "may not write to node.lock, which a node of another user made" in found.message
    assert found.remedy.startswith("Run `sudo chown -R nobody")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_work_dir_that_this_user_may_not_see_ends_the_start_with_the_remedy(directory: Path, pki: Pki) -> None:
    config = load(write_config(directory, pki), {}).config
    directory.chmod(0o700)

    def start() -> Finding:
        findings = check_at_start(config, find_state_dir(config.work_dir, "12D3KooWabcdefgh"), {})
        return next(finding for finding in list(findings) if finding.mark is Mark.FAILURE)

    found = in_child(start, user=65534)
    assert (found.mark, found.message) == ("failure", f"work_dir {directory}/work: Permission denied")


async def test_a_work_dir_that_the_group_can_write_to_is_a_warning(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki)
    (directory / "work").mkdir()
    (directory / "work").chmod(0o770)
    assert (await problem(path, "work_dir.access")).remedy == f"Run `chmod 750 {directory / 'work'}`."


async def test_a_work_dir_with_a_long_path_is_a_failure(directory: Path, pki: Pki) -> None:
    found = await problem(write_config(directory, pki, work_dir="d" * 60), "work_dir.path")
    assert (found.mark, found.remedy) == ("failure", "Choose a shorter path.")


async def test_a_full_disk_is_a_failure(directory: Path, pki: Pki) -> None:
    found = await problem(write_config(directory, pki, work_dir="/proc/self"), "work_dir.space")
    assert (found.mark, found.message) == ("failure", "the disk of work_dir has 0 GB left")


async def test_a_socket_that_others_may_use_is_a_failure(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki)
    (directory / "work").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "work" / "connector.sock"))
        (directory / "work" / "connector.sock").chmod(0o666)
        found = await problem(path, "work_dir.sockets")
    assert "may be used by other users (mode 666)" in found.message
    assert found.remedy.startswith("Run `chmod 600")
    assert [entry.name for entry in (directory / "work").iterdir()] == ["connector.sock"], "nothing is left behind"


async def test_a_file_system_without_sockets_is_a_failure(directory: Path, pki: Pki) -> None:
    found = await problem(write_config(directory, pki, work_dir="/proc/self"), "work_dir.sockets")
    assert (found.mark, found.remedy) == ("failure", "Choose a work_dir on a local file system.")


async def test_a_job_that_failed_is_a_warning_that_names_its_log(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki)
    async with open_rig(jobs.config(directory / "work", "raise SystemExit(7)")) as rig:
        await rig.run(job := jobs.job())
    found = await problem(path, "jobs.logs")
    assert "the executor ended: exit code 7" in found.message
    assert found.remedy == f"Read {directory / 'work/logs' / str(job.task_id) / 'output.log'}."


async def test_a_floor_above_the_price_is_a_warning(directory: Path, pki: Pki) -> None:
    found = await problem(write_config(directory, pki, offer={"price": 50, "floor": 80}), "market.terms")
    assert found.remedy == "Lower offer.floor to offer.price or less."


async def test_checks_of_the_host_are_skipped_for_a_worker_of_a_cluster(directory: Path, pki: Pki) -> None:
    cluster = {"namespace": "ns", "worker": "w", "worker_uid": "uid"}
    executor = {"runtime": "kubernetes", "cmd": None, "args": None}
    path = write_config(directory, pki, executor=executor, kubernetes=cluster)
    checks = HOST - {"machine.clock"}
    left_out = {check for check in checks if {f.mark for f in await examine(path, check)} == {"skipped"}}
    own = {"configuration.file", "machine.platform", "machine.descriptors", "market.terms", "work_dir.access"}
    assert checks - left_out == own | {check for check in checks if check.startswith("identity.")}


async def test_an_occupied_and_a_foreign_listen_address_are_failures(directory: Path, pki: Pki) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = occupied.getsockname()[1]
        path = write_config(directory, pki, listen_addresses=[f"/ip4/127.0.0.1/tcp/{port}"])
        assert (await problem(path, "network.listen")).remedy.startswith("Stop the other program")
    path = write_config(directory, pki, listen_addresses=["/ip4/203.0.113.9/tcp/4001"])
    assert "external_addresses" in (await problem(path, "network.listen")).remedy


async def test_every_check_of_a_process_takes_moments(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki)
    began = time.monotonic()
    for check in HOST - {"executors.modules"}:
        await examine(path, check)
    assert time.monotonic() - began < 20
    assert sys.executable in str(await examine(path, "executors.programs"))
