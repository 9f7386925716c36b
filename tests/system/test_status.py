"""`hypha-worker status`, `jobs` and `logs`, and the page, of a node as its owner runs it."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio

from hypha_messages.progress import PROGRESS, ProgressResponse, ReportProgress
from support.certs import Pki
from support.interrupts import INTERRUPTIBLE
from support.jobs import train_spec
from support.networks import DEADLINE_S, gateway
from support.node_process import Stage, stage

pytestmark = pytest.mark.anyio

REPORTING = """
import http.client, json, os, socket, time

class Bridge(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.environ["SOCKET_PATH"])

def report(progress):
    bridge = Bridge("bridge")
    bridge.request("POST", "/status/send", json.dumps(progress), {"Content-Type": "application/json"})
    assert bridge.getresponse().status == 200

for number in (1, 2, 3):
    report({"status": {"batch_size": 8}})
    report({"metrics": {"round": number, "metrics": {"loss": 4.0 - number}}})
while True:
    time.sleep(1)
"""
"""A job that reports three rounds."""


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


def command(config: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "hypha_worker", *args, "--config", str(config)]


def run(config: Path, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(config, *args), capture_output=True, text=True, timeout=60, check=False, **options)


def started(config: Path, *args: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([*INTERRUPTIBLE, *command(config, *args)], text=True, **options)


async def ask(config: Path, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return await trio.to_thread.run_sync(partial(run, config, *args, **options))


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - another process sees to it
            await trio.sleep(0.05)


async def running_job(s: Stage) -> UUID:
    lease, task_id = await s.scheduler.lease(), uuid4()
    assert await s.scheduler.dispatch(lease, train_spec(), task_id)
    await until(lambda: "its executor runs" in s.node.log)
    return task_id


async def test_one_look_shows_the_node_its_job_and_its_lease(pki: Pki) -> None:
    async with gateway(pki) as entry, stage(pki, entry, "run", leases={"duration_s": 60.0}) as s:
        task_id = await running_job(s)
        shown = await ask(s.node.config, "status")
        assert (shown.returncode, shown.stderr) == (0, "")
        assert re.match(r"Hypha worker 12D3KooW\w+ ready\n", shown.stdout)
        assert re.search(rf"^{str(task_id)[:8]}  train/test  running", shown.stdout, re.MULTILINE)
        assert re.search(r"^\w{8}  held   " + str(task_id)[:8], shown.stdout, re.MULTILINE)
        assert "accepted" in shown.stdout
        state = json.loads((await ask(s.node.config, "status", "--json")).stdout)
        assert (state["schema"], state["jobs"][0]["task_id"]) == (1, str(task_id))
        jobs = await ask(s.node.config, "jobs")
        assert jobs.stdout.splitlines()[1].split()[:3] == [str(task_id)[:8], "train/test", "running"]


async def test_commands_find_the_node_in_a_directory_that_every_user_may_write_to(pki: Pki) -> None:
    async with gateway(pki) as entry, stage(pki, entry, "run") as s:
        await until(s.node.work_dir.exists)
        s.node.signal(signal.SIGTERM)
        await s.node.ended()
        s.node.work_dir.chmod(0o777)
        s.node.start()
        await until(lambda: list(s.node.work_dir.glob("hypha-worker-*/status.sock")))
        assert (await ask(s.node.config, "status")).stdout.startswith("Hypha worker 12D3KooW")


async def test_the_lines_of_bridge_and_executor_are_shown_in_one_and_followed_to_the_end(pki: Pki) -> None:
    async with gateway(pki) as entry, stage(pki, entry, "run", leases={"duration_s": 60.0}) as s:
        task_id = await running_job(s)
        output = s.node.work_dir / f"jobs/{task_id}/output.log"
        await until(lambda: "executor says" in output.read_text())
        shown = await ask(s.node.config, "logs", str(task_id)[:10])
        assert shown.returncode == 0, shown.stderr
        assert re.search(r"^\d\d:\d\d:\d\d bridge   level=info ", shown.stdout, re.MULTILINE)
        assert re.search(r"^\d\d:\d\d:\d\d executor the executor says run$", shown.stdout, re.MULTILINE)
        with started(s.node.config, "logs", "-f", str(task_id), stdout=subprocess.PIPE) as following:
            assert following.stdout is not None
            first = await trio.to_thread.run_sync(following.stdout.readline)
            os.kill(s.node.starts[0], signal.SIGKILL)
            followed = first + await trio.to_thread.run_sync(following.stdout.read)
        assert following.returncode == 0
        assert "the executor says run" in followed
        assert not output.exists()
        assert (await ask(s.node.config, "logs", str(task_id))).stdout == followed


async def test_watching_jobs_without_a_terminal_prints_a_line_for_each_change(pki: Pki) -> None:
    async with gateway(pki) as entry, stage(pki, entry, "run", leases={"duration_s": 60.0}) as s:
        task_id = str(await running_job(s))[:8]
        with started(s.node.config, "jobs", "-w", stdout=subprocess.PIPE) as watch:
            assert watch.stdout is not None
            assert await trio.to_thread.run_sync(watch.stdout.readline) == f"{task_id} train/test running\n"
            os.kill(s.node.starts[0], signal.SIGKILL)
            failed = await trio.to_thread.run_sync(watch.stdout.readline)
            assert failed.startswith(f"{task_id} train/test failed the executor ended: ")
            watch.send_signal(signal.SIGINT)
            assert await trio.to_thread.run_sync(watch.wait) == 130


async def test_watching_jobs_on_a_terminal_goes_on_while_the_node_is_away(pki: Pki) -> None:
    async with gateway(pki) as entry, stage(pki, entry, "run", leases={"duration_s": 60.0}) as s:
        task_id = str(await running_job(s))[:8]
        ours, theirs = pty.openpty()
        environ = os.environ | {"COLUMNS": "120", "LINES": "30", "TERM": "xterm"}
        with started(s.node.config, "jobs", "-w", stdout=theirs, env=environ) as watch:
            os.close(theirs)
            output = ""
            while f"{task_id}" not in output:
                output += (await trio.to_thread.run_sync(os.read, ours, 4096)).decode()
            s.node.close()
            while "out of date: no node runs in" not in output:
                output += (await trio.to_thread.run_sync(os.read, ours, 4096)).decode()
            watch.send_signal(signal.SIGINT)
            assert await trio.to_thread.run_sync(watch.wait) == 130
        os.close(ours)


@pytest.mark.parametrize("args", [("status",), ("status", "--json"), ("jobs",), ("jobs", "-w")])
async def test_without_a_running_node_one_line_says_so_and_what_to_do(pki: Pki, args: tuple[str, ...]) -> None:
    async with gateway(pki) as entry, stage(pki, entry, "run") as s:
        await until((s.node.work_dir / "status.sock").exists)
        s.node.close()  # which leaves the socket behind
        found = await ask(s.node.config, *args)
        assert (found.returncode, found.stdout) == (1, "")
        assert found.stderr.startswith(f"error: no node runs in {s.node.work_dir}. Start it with `hypha-worker run`")
        assert found.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
async def test_another_user_is_told_to_be_the_user_of_the_node(pki: Pki) -> None:
    async with gateway(pki) as entry, stage(pki, entry, "run") as s:
        await until((s.node.work_dir / "status.sock").exists)
        s.node.directory.chmod(0o755)
        code = (
            "import os, sys; from pathlib import Path; from hypha_worker.status import client; "
            "os.setegid(65534); os.seteuid(65534); client.fetch(Path(sys.argv[1]))"
        )
        other = [sys.executable, "-c", code, str(s.node.work_dir)]
        found = await trio.to_thread.run_sync(partial(subprocess.run, other, capture_output=True, text=True))
        assert "Run this command as the user of the node" in found.stderr


async def test_the_first_answer_waits_for_no_part_of_the_node(pki: Pki, tmp_path: Path) -> None:
    async with gateway(pki) as entry, stage(pki, entry, "run") as s:
        await until((s.node.work_dir / "status.sock").exists)
        timed = [sys.executable, "-X", "importtime", "-m", "hypha_worker", "status", "--config", str(s.node.config)]
        found = await trio.to_thread.run_sync(partial(subprocess.run, timed, capture_output=True, text=True))
        imported = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines() if "import time:" in line}
        assert "hypha_worker.status.client" in imported
        slow = {"cryptography", "libp2p", "opentelemetry", "aioquic", "qh3", "httpx", "h11", "hypha_network.network"}
        assert not imported & slow


async def test_a_node_shows_its_page_and_what_its_job_reports(pki: Pki) -> None:
    async with (
        gateway(pki) as entry,
        stage(pki, entry, "run", status_page={"listen": "127.0.0.1:0"}, leases={"duration_s": 60.0}) as s,
    ):

        async def answer(_: str, __: ReportProgress) -> ProgressResponse:
            return ProgressResponse(type="Ok")

        s.scheduler.network.handle(PROGRESS, answer)
        (s.node.directory / "executor.py").write_text(REPORTING)
        await running_job(s)
        await until(lambda: "the status page is at" in s.node.log)
        found = re.search(r"the status page is at (http://127\.0\.0\.1:\d+/)", s.node.log)
        assert found
        jobs: list[Any] = []
        with trio.fail_after(DEADLINE_S):
            while not jobs or len(jobs[0]["loss"]["y"]) < 3:
                with await trio.to_thread.run_sync(urllib.request.urlopen, f"{found[1]}status.json") as state:
                    jobs = json.load(state)["jobs"]
                await trio.sleep(0.2)
        assert (jobs[0]["round"], jobs[0]["metrics"], jobs[0]["samples"]) == (3, {"loss": 1.0}, 24)
        assert jobs[0]["loss"]["y"] == [3.0, 2.0, 1.0]
