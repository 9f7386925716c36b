"""`kubectl hypha status` and `jobs`, as processes against a real API server."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster.pki import write_kubeconfig
from support.api_server import ApiServer, PrivateApiServer
from support.interrupts import INTERRUPTIBLE
from support.kubectl import FAILED_TASK, TASK, Scene, condition, furnish, kubectl_hypha
from support.resources import install_definitions
from support.waiting import until


def test_status_shows_workers_with_what_they_lack_and_earn(scene: Scene) -> None:
    furnish(scene)
    done = scene.run("status")
    assert (done.returncode, done.stderr) == (0, "")
    for text in (
        f"{scene.namespace}/gpu  Ready: Serving",
        "asks 90, from a bid of 80, flexible",
        "1 gateway, reached through gateways; certificate until 2031-05-01",
        "34 of the last 100 considered",
        "gpu 51.5 of 103.1 GB",
        "1,516,800 by 13 ended leases in 4h13m",
        "1 lease without a job",
        "round 12, loss 0.03125, 131.5 samples/s",
        "OutOfMemory: The executor needed more than the 16 GB of its lease.",
        "-> Request more memory, or use less.",
        f"{scene.namespace}/broken  not ready: SecretMissing",
        "-> Create the Secrets that the message names.",
        f"-> Run `kubectl hypha resume resting -n {scene.namespace}`.",
        "3 workers, 1 of them offers; jobs: 1 running; earned 1,57",
    ):
        assert text in done.stdout
    assert "\x1b" not in done.stdout


def test_status_of_one_worker_as_json(scene: Scene) -> None:
    furnish(scene)
    done = scene.run("status", "gpu", "-o", "json")
    shown = json.loads(done.stdout)
    assert shown["schema"] == 1
    [worker] = shown["workers"]
    assert (worker["name"], worker["offers"], worker["earnings"]["ended"]) == ("gpu", True, 1516800)
    assert {job["phase"] for job in worker["jobs"]} == {"Running", "Failed"}


def test_the_namespace_is_that_of_the_context_and_all_are_asked_on_request(scene: Scene, tmp_path: Path) -> None:
    scene.serving()
    config = yaml.safe_load(scene.server.kubeconfig.read_text())
    config["contexts"][0]["context"]["namespace"] = scene.namespace
    (file := tmp_path / "config").write_text(yaml.safe_dump(config))
    assert f"{scene.namespace}/gpu" in kubectl_hypha(file, "status").stdout
    assert f"{scene.namespace}/gpu" in kubectl_hypha(scene.server.kubeconfig, "status", "-A").stdout
    assert "There are no HyphaWorkers in namespace default" in kubectl_hypha(scene.server.kubeconfig, "status").stdout


def test_an_unknown_worker_is_answered_with_those_that_exist(scene: Scene) -> None:
    scene.serving()
    done = scene.run("status", "gpo")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: no HyphaWorker gpo in namespace {scene.namespace}. There are: gpu.")


def test_a_user_without_rights_learns_which_right_is_missing(scene: Scene) -> None:
    done = kubectl_hypha(scene.server.user_kubeconfig("eve"), "jobs", "-n", scene.namespace)
    assert (done.returncode, done.stdout) == (1, "")
    assert 'User "eve" cannot list resource "hyphajobs" in API group "hypha.space"' in done.stderr
    assert "Ask an administrator for this right" in done.stderr


def test_a_cluster_that_does_not_answer_is_named(scene: Scene, tmp_path: Path) -> None:
    config = yaml.safe_load(scene.server.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (file := tmp_path / "config").write_text(yaml.safe_dump(config))
    done = kubectl_hypha(file, "status")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no answer from the API server https://127.0.0.1:1 ([Errno 111] Connection refused)" in done.stderr
    assert "use another --context" in done.stderr


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"[1]", b"7", b""])
def test_something_else_than_an_api_server_is_named(tmp_path: Path, body: bytes) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        file = write_kubeconfig(tmp_path / "config", f"http://127.0.0.1:{http.server_port}", tmp_path / "none", {})
        done = kubectl_hypha(file, "status")
        http.shutdown()
    assert (done.returncode, done.stdout) == (1, "")
    assert "this is no API server" in done.stderr


def test_another_authority_than_that_of_the_cluster_is_refused(scene: Scene, tmp_path: Path) -> None:
    config = yaml.safe_load(scene.server.kubeconfig.read_text())
    for key in ("certificate-authority", "certificate-authority-data"):
        config["clusters"][0]["cluster"].pop(key, None)
    (file := tmp_path / "config").write_text(yaml.safe_dump(config))
    done = kubectl_hypha(file, "status")
    assert done.returncode == 1
    assert "certificate verify failed" in done.stderr


def test_no_kubeconfig_is_a_wrong_configuration(tmp_path: Path) -> None:
    done = kubectl_hypha(tmp_path / "missing", "status")
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: no kubeconfig: {tmp_path}/missing: no such file. Set KUBECONFIG, or use --kubeconfig FILE.\n"
    )


@pytest.mark.parametrize("arguments", [("status", "-A", "-n", "x"), ("jobs", "-w", "-o", "json")])
def test_options_that_exclude_each_other_are_refused(scene: Scene, arguments: tuple[str, ...]) -> None:
    done = kubectl_hypha(scene.server.kubeconfig, *arguments)
    assert done.returncode == 2
    assert "use either" in done.stderr


@pytest.mark.parametrize("namespace", ["", "../x", "A", "a/b"])
def test_what_is_no_name_of_a_namespace_is_refused(scene: Scene, namespace: str) -> None:
    done = kubectl_hypha(scene.server.kubeconfig, "jobs", "-n", namespace)
    assert done.returncode == 2
    assert f"{namespace!r} is no name of a namespace" in done.stderr


def test_a_cluster_without_the_definitions_is_told_what_to_install(private_api_server: PrivateApiServer) -> None:
    done = kubectl_hypha(private_api_server.api.kubeconfig, "status")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the cluster has no HyphaWorkers and HyphaJobs. Install the chart" in done.stderr


def test_jobs_are_listed_for_people_and_programs(scene: Scene) -> None:
    furnish(scene)
    header, first, second = scene.run("jobs").stdout.splitlines()
    assert header.split()[:4] == ["JOB", "WORKER", "EXECUTOR", "PHASE"]
    assert first.startswith(f"hypha-{TASK}")
    assert "OutOfMemory" in second
    shown = json.loads(scene.run("jobs", "-o", "json").stdout)
    assert [job["name"] for job in shown["jobs"]] == [f"hypha-{TASK}", f"hypha-{FAILED_TASK}"]


class Output:
    """What a program writes, while it runs."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self.text = descriptor, ""
        os.set_blocking(descriptor, False)

    def shows(self, text: str) -> bool:
        with suppress(BlockingIOError):
            self.text += os.read(self._descriptor, 65536).decode()
        return text in self.text


@contextmanager
def watching(server: ApiServer, namespace: str, *, columns: int | None) -> Iterator[Output]:
    """Run `jobs -w` in a terminal with so many columns, or in a pipe."""
    reader, writer = pty.openpty() if columns else os.pipe()
    if columns:
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environ |= {"KUBECONFIG": str(server.kubeconfig), "TERM": "xterm"}
    command = [*INTERRUPTIBLE, sys.executable, "-m", "hypha_kubectl", "jobs", "-w", "-n", namespace]
    with subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=writer) as process:
        os.close(writer)
        try:
            yield Output(reader)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        finally:
            process.kill()
            os.close(reader)


def test_a_terminal_shows_jobs_live_in_lines_that_fit(scene: Scene) -> None:
    with watching(scene.server, scene.namespace, columns=60) as output:
        until(lambda: output.shows("There are no HyphaJobs"))
        worker = scene.serving()
        job = scene.job(worker, "Pending")
        until(lambda: output.shows("Pending"))
        scene.phase(job, "Running", progress={"round": 7})
        until(lambda: output.shows("Running") and "ROUND" in output.text)
    assert "\x1b[32m" in output.text


def test_a_pipe_gets_a_line_for_each_change(scene: Scene) -> None:
    worker = scene.serving()
    job = scene.job(worker, "Pending")
    with watching(scene.server, scene.namespace, columns=None) as output:
        until(lambda: output.shows("Pending"))
        scene.phase(job, "Failed", condition("Ready", False, "OutOfMemory"), reason="OutOfMemory")
        until(lambda: output.shows("OutOfMemory"))
        scene.user.delete(job)
        until(lambda: output.shows(f"hypha-{TASK} is deleted"))
    assert "\x1b" not in output.text


def test_a_watch_goes_on_after_the_api_server_was_away(private_api_server: PrivateApiServer) -> None:
    api = private_api_server.api
    install_definitions(api)
    scene = Scene(api, api.namespace())
    worker = scene.serving()
    job = scene.job(worker, "Pending")
    with watching(api, scene.namespace, columns=200) as output:
        until(lambda: output.shows("Pending"))
        private_api_server.processes.signal("kube-apiserver", signal.SIGKILL)
        until(lambda: output.shows("out of date: "))
        private_api_server.processes.start("kube-apiserver")
        until(lambda: api.client().get("/readyz").is_success)
        scene.phase(job, "Running")
        until(lambda: output.shows("Running"))
