"""`kubectl hypha logs`: the logs of bridge and executor in one, by time."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hypha_contracts.names import JOB_LABEL
from hypha_kubectl.views.interleave import HOLD_S, MAX_WAITING, Interleaver, Line, Moment, parse_line
from support.kubectl import FAILED_TASK, TASK, Scene
from support.kubelet import Kubelet, kubelet
from support.waiting import until

JOB = f"hypha-{TASK}"
PODS_NAME = f"{JOB}-x7k2p"


def stamped(second: float, text: str) -> str:
    return f"2026-01-01T12:00:{second:012.9f}Z {text}"


def line(source: str, second: int, text: str = "") -> Line:
    return Line(source, Moment(second, 0), text)


class TestTheOrderOfLines:
    def test_a_line_waits_for_earlier_lines_of_the_other_log(self) -> None:
        lines = Interleaver(["a", "b"], 0)
        lines.add(line("a", 5), 0)
        assert lines.take(0) == []
        lines.add(line("b", 3), 0.1)
        assert lines.take(0.1) == [line("b", 3)]
        lines.add(line("b", 7), 0.2)
        assert lines.take(0.2) == [line("a", 5)]

    def test_a_log_that_says_nothing_holds_the_other_for_a_moment_only(self) -> None:
        lines = Interleaver(["a", "b"], 0)
        lines.add(line("a", 5), 0)
        assert lines.take(HOLD_S / 2) == []
        assert lines.take(HOLD_S) == [line("a", 5)]

    def test_a_log_that_has_ended_holds_nothing(self) -> None:
        lines = Interleaver(["a", "b"], 0)
        lines.add(line("a", 5), 0)
        lines.end("b")
        assert lines.take(0) == [line("a", 5)]
        assert not lines.is_over
        lines.end("a")
        assert lines.is_over

    def test_few_lines_wait(self) -> None:
        lines = Interleaver(["a", "b"], 0)
        for second in range(MAX_WAITING + 1):
            lines.add(line("a", second), 0)
        assert len(lines.take(0)) == 2


@pytest.mark.parametrize(
    ("raw", "moment", "text"),
    [
        ("2026-01-01T00:00:00.000000001Z x", Moment(1767225600, 1), "x"),
        ("2026-01-01T01:00:00.5+01:00 x y", Moment(1767225600, 500_000_000), "x y"),
        ("2026-01-01T00:00:00Z", Moment(1767225600, 0), ""),
        ("no time", Moment(7, 7), "no time"),
        ("2026-02-30T00:00:00Z x", Moment(7, 7), "2026-02-30T00:00:00Z x"),
        ("2026-01-01T00:00:00Z a\tb\x1b[2J\r", Moment(1767225600, 0), "a       b\\x1b[2J"),
    ],
)
def test_a_line_begins_with_its_time(raw: str, moment: Moment, text: str) -> None:
    assert parse_line("a", raw, Moment(7, 7)) == Line("a", moment, text)


@pytest.fixture
def node(scene: Scene) -> Iterator[Kubelet]:
    with kubelet(scene.server) as served:
        yield served


@pytest.fixture
def job(scene: Scene, node: Kubelet) -> Kubelet:
    """A job that runs, with some lines in its logs."""
    scene.job(scene.serving(), "Running")
    node.pod(scene.namespace, PODS_NAME, "bridge", "executor", labels={JOB_LABEL: JOB})
    node.logs[scene.namespace, PODS_NAME, "bridge"] += [stamped(1, "listens"), stamped(3, "fetched https://hub/x?y")]
    node.logs[scene.namespace, PODS_NAME, "executor"] += [stamped(2, "starts"), stamped(4, "round 1")]
    return node


def test_lines_of_both_containers_are_in_order_with_their_source(scene: Scene, job: Kubelet) -> None:
    done = scene.run("logs", JOB)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "bridge   listens",
        "executor starts",
        "bridge   fetched https://hub/x?y",
        "executor round 1",
    ]


def test_a_job_is_found_by_the_beginning_of_its_task_id_and_lines_are_limited(scene: Scene, job: Kubelet) -> None:
    done = scene.run("logs", str(TASK)[:8], "--tail", "1", "--since", "10m", "--timestamps")
    assert done.stdout.splitlines() == [
        "2026-01-01T12:00:03.000Z bridge   fetched https://hub/x?y",
        "2026-01-01T12:00:04.000Z executor round 1",
    ]
    assert {(query["tailLines"], query["sinceSeconds"]) for query in job.asked} == {("1", "600")}


def test_following_shows_new_lines_until_the_job_ends_even_if_a_log_breaks_off(scene: Scene, job: Kubelet) -> None:
    job.broken = 2
    command = [sys.executable, "-m", "hypha_kubectl", "logs", "-f", JOB, "-n", scene.namespace]
    environ = os.environ | {"KUBECONFIG": str(scene.server.kubeconfig)}
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    text = ""

    def shows(wanted: str) -> bool:
        nonlocal text
        try:
            text += os.read(reader, 65536).decode()
        except BlockingIOError:
            return False
        return wanted in text

    with subprocess.Popen(command, env=environ, stdout=writer) as process:
        os.close(writer)
        until(lambda: shows("round 1"))
        job.logs[scene.namespace, PODS_NAME, "executor"].append(stamped(5, "round 2"))
        until(lambda: shows("round 2"))
        job.end(scene.namespace, PODS_NAME)
        assert process.wait(30) == 0
    os.close(reader)
    rows = [row.split(maxsplit=1)[1] for row in text.splitlines()]
    assert sorted(rows) == sorted(["listens", "starts", "fetched https://hub/x?y", "round 1", "round 2"])


def test_a_container_that_waits_is_named_and_the_other_is_shown(scene: Scene, node: Kubelet) -> None:
    job = scene.job(scene.serving(), "Starting")
    node.pod(scene.namespace, PODS_NAME, "bridge", "executor", labels={JOB_LABEL: JOB})
    node.logs[scene.namespace, PODS_NAME, "bridge"].append(stamped(1, "listens"))
    node.waiting.add((scene.namespace, PODS_NAME, "executor"))
    done = scene.run("logs", job["metadata"]["name"])
    assert done.stdout == "bridge   listens\n"
    assert done.stderr.startswith("executor: container")
    assert "waiting to start: PodInitializing. Use -f to wait for it." in done.stderr


def test_without_a_pod_the_status_has_the_last_lines(scene: Scene) -> None:
    worker = scene.serving()
    scene.job(worker, "Failed", lastLines=["Traceback", "MemoryError\x1b[2J"])
    done = scene.run("logs", JOB)
    assert done.returncode == 0
    assert "the last lines of its executor" in done.stderr
    assert done.stdout == "Traceback\nMemoryError\\x1b[2J\n"
    scene.job(worker, "Pending", FAILED_TASK)
    pending = scene.run("logs", f"hypha-{FAILED_TASK}")
    assert pending.returncode == 1
    assert "has no pod yet" in pending.stderr


def test_an_unknown_or_ambiguous_job_is_answered_with_what_to_write(scene: Scene) -> None:
    worker = scene.serving()
    scene.job(worker, "Running")
    scene.job(worker, "Running", FAILED_TASK)
    unknown, ambiguous = scene.run("logs", "nothing"), scene.run("logs", "hypha-")
    assert (unknown.returncode, ambiguous.returncode) == (1, 1)
    assert "no HyphaJob nothing in namespace" in unknown.stderr
    assert f"hypha- may mean 2 jobs: hypha-{TASK}, hypha-{FAILED_TASK}. Write more of the name." in ambiguous.stderr


def test_a_wrong_duration_is_a_wrong_command_line(scene: Scene) -> None:
    done = scene.run("logs", JOB, "--since", "soon")
    assert done.returncode == 2
    assert "'soon' is no duration. Write 90s, 10m, 1h30m or 2d." in done.stderr
