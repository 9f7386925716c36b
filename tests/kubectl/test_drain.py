"""`kubectl hypha drain` and `resume` on a real API server. The test acts as operator and node."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from hypha_contracts.kinds import WORKER, Manifest
from hypha_contracts.reasons import WorkerReason
from hypha_kubectl.access.api import Api, open_api
from hypha_kubectl.access.kubeconfig import load_context
from hypha_kubectl.access.mirror import following
from hypha_kubectl.commands.drain import drain, resume
from hypha_kubectl.errors import PluginError
from hypha_kubectl.views.draining import Left, left_of, owner_in_git
from support.kubectl import CONNECTED, Scene, condition
from support.operator_objects import hypha_job, worker_manifest
from support.waiting import until

SUSPENDED = condition("Ready", True, WorkerReason.SUSPENDED)
REPORTED = condition("Reported", True, "EndReported")


@pytest.fixture
def api(scene: Scene) -> Iterator[Api]:
    with open_api(load_context({}, scene.server.kubeconfig), {}) as opened:
        yield opened


def worker(generation: int = 1, observed: int = 1, ready: bool = True, **node: object) -> Manifest:
    manifest = worker_manifest()
    manifest["metadata"]["generation"] = generation
    conditions = [condition("Ready", ready, "Suspended")]
    return manifest | {"status": {"observedGeneration": observed, "conditions": conditions, "node": node}}


class TestWhatIsLeft:
    def test_a_worker_whose_operator_has_not_seen_it_is_not_drained(self) -> None:
        left = left_of(worker(generation=2), [])
        assert not left.is_nothing
        assert str(left) == "the operator has not seen it yet"

    def test_jobs_that_run_or_whose_end_is_not_reported_are_left(self) -> None:
        ended, reported = ({"phase": "Succeeded", "conditions": found} for found in ([], [REPORTED]))
        jobs = [hypha_job(status=status) for status in ({"phase": "Running"}, ended, reported)]
        assert left_of(worker(), jobs) == Left(True, running=1, unreported=1, leases=0, reserved=False)
        assert str(left_of(worker(), jobs)) == "1 job runs, the end of 1 job is not reported"

    def test_leases_and_what_is_reserved_for_offers_are_left(self) -> None:
        assert str(left_of(worker(leases=[{}, {}]), [])) == "2 leases without a job"
        reserving = left_of(worker(allocated={"cpu": 1.0}), [])
        assert not reserving.is_nothing
        assert str(reserving) == "the node releases what it has reserved"
        assert left_of(worker(allocated={"cpu": 0.0}), []).is_nothing

    def test_what_a_node_reported_that_does_not_run_any_more_does_not_count(self) -> None:
        assert left_of(worker(ready=False, leases=[{}], allocated={"cpu": 1.0}), []).is_nothing


def test_a_worker_that_comes_from_git_is_recognised() -> None:
    manifest = worker()
    assert owner_in_git(manifest) is None
    manifest["metadata"]["labels"] = {"kustomize.toolkit.fluxcd.io/name": "workers"}
    assert owner_in_git(manifest) == "kustomize.toolkit.fluxcd.io/name"


@contextmanager
def running(command: Callable[[], None]) -> Iterator[Callable[[], BaseException | None]]:
    """Run a command in a thread; yield a function that waits for its end and returns its error."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            command()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def ended() -> BaseException | None:
        thread.join(30)
        assert not thread.is_alive()
        return errors[0] if errors else None

    yield ended
    ended()


def test_drain_suspends_and_waits_until_jobs_have_ended_and_are_reported(
    scene: Scene, api: Api, capfd: pytest.CaptureFixture[str]
) -> None:
    before = scene.serving()
    job = scene.job(before, "Running")
    shown = ""

    def shows(text: str) -> bool:
        nonlocal shown
        shown += capfd.readouterr().out
        return text in shown

    def command() -> None:
        drain(api, scene.namespace, "gpu", deadline_s=None, timeout_s=None, settle_s=0)

    with running(command) as ended:
        until(lambda: shows("waiting: the operator has not seen it yet, 1 job runs"))
        suspended = scene.user.get(before)
        assert suspended is not None
        assert suspended["spec"]["suspend"] is True
        scene.say(suspended, SUSPENDED)
        until(lambda: shows("waiting: 1 job runs"))
        scene.phase(job, "Succeeded")
        until(lambda: shows("waiting: the end of 1 job is not reported"))
        scene.phase(job, "Succeeded", REPORTED)
        assert ended() is None
    assert shows(f"{scene.namespace}/gpu is drained.")


def test_a_worker_without_jobs_is_drained_once_nothing_is_reserved_for_a_while(scene: Scene, api: Api) -> None:
    before = scene.serving(node=CONNECTED | {"allocated": {"cpu": 0.0}})
    scene.say(before | {"metadata": {**before["metadata"], "generation": 99}}, SUSPENDED)
    with pytest.raises(PluginError, match=r"is not drained after 0s: nothing is left. It stays suspended"):
        drain(api, scene.namespace, "gpu", deadline_s=None, timeout_s=0, settle_s=1000)
    drain(api, scene.namespace, "gpu", deadline_s=None, timeout_s=0, settle_s=0)


def test_drain_without_waiting_sets_the_deadline(scene: Scene) -> None:
    before = scene.serving()
    done = scene.run("drain", "gpu", "--no-wait", "--deadline", "2h")
    assert (done.returncode, done.stderr) == (0, "")
    after = scene.user.get(before)
    assert after is not None
    assert after["spec"]["suspend"] is True
    assert f"Jobs that still run at {after['spec']['suspendDeadline']} are ended." in done.stdout
    assert "drained" not in done.stdout


def test_drain_warns_of_a_change_that_git_may_undo(scene: Scene) -> None:
    manifest = scene.serving()
    scene.user.merge(manifest, {"metadata": {"annotations": {"argocd.argoproj.io/tracking-id": "x"}}})
    done = scene.run("drain", "gpu", "--no-wait")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: argocd.argoproj.io/tracking-id shows that this worker comes from Git")


def test_no_watch_outlives_its_block(scene: Scene, api: Api) -> None:
    """A thread that still read would read from the next connection that gets its socket's descriptor."""
    scene.serving()
    before = threading.active_count()
    for _ in range(20):
        with following(api, WORKER, scene.namespace) as workers:
            assert len(workers.objects) == 1
            assert threading.active_count() == before + 1
        assert threading.active_count() == before


def test_a_worker_that_is_deleted_meanwhile_ends_the_wait(scene: Scene, api: Api) -> None:
    before = scene.serving()

    def command() -> None:
        drain(api, scene.namespace, "gpu", deadline_s=None, timeout_s=None, settle_s=0)

    with running(command) as ended:
        until(lambda: (scene.user.get(before) or {"spec": {}})["spec"].get("suspend"))
        scene.user.delete(before)
        assert str(ended()) == f"{scene.namespace}/gpu was deleted meanwhile."


def test_resume_waits_until_the_worker_makes_offers(scene: Scene) -> None:
    before = scene.serving(suspend=True, suspendDeadline="2030-01-31T08:00:00Z")
    ready = condition("Ready", True, WorkerReason.SERVING)
    scene.say(before | {"metadata": {**before["metadata"], "generation": 2}}, ready)
    done = scene.run("resume", "gpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"{scene.namespace}/gpu makes offers.\n")
    after = scene.user.get(before)
    assert after is not None
    assert not {"suspend", "suspendDeadline"} & after["spec"].keys()


def test_resume_ends_at_once_if_only_a_person_can_help(scene: Scene, api: Api) -> None:
    before = scene.serving(suspend=True)
    refused = WorkerReason.IDENTITY_REFUSED
    broken = condition("Ready", False, refused, "The key is no Ed25519 key."), condition("Stalled", True, refused)
    scene.say(before | {"metadata": {**before["metadata"], "generation": 2}}, *broken)
    with pytest.raises(PluginError, match=r"makes no offers: IdentityRefused: The key is no Ed25519 key. Provide"):
        resume(api, scene.namespace, "gpu", timeout_s=60, wait=True)


def test_an_unknown_worker_or_a_missing_right_changes_nothing(scene: Scene) -> None:
    before = scene.serving()
    done = scene.run("drain", "gpo")
    assert done.returncode == 1
    assert "There are: gpu." in done.stderr
    api, namespace = scene.server, scene.namespace
    api.kubectl("create", "role", "see", f"-n{namespace}", "--verb=list", "--resource=hyphaworkers.hypha.space")
    api.kubectl("create", "rolebinding", "viewers", f"-n{namespace}", "--role=see", "--user=vera")
    done = scene.run("resume", "gpu", KUBECONFIG=str(api.user_kubeconfig("vera")))
    assert done.returncode == 1
    assert 'User "vera" cannot patch resource "hyphaworkers"' in done.stderr
    after = scene.user.get(before)
    assert after is not None
    assert after["spec"] == before["spec"]
