"""`kubectl hypha release`: finalizers of an operator that is gone, on a real API server."""

import os
import pty
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from hypha_contracts.kinds import LEASE, Manifest
from hypha_contracts.operator_lease import LEASE_NAME
from hypha_kubectl.views.operators import Held
from hypha_kubectl.views.releasing import consequence, holdings_of, living
from support.kubectl import Scene
from support.operator_objects import hypha_job, worker_manifest

DRAIN = "hypha.space/drain"
THEIRS = "example.org/theirs"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def worker(*finalizers: str, deleting: bool = False) -> Manifest:
    manifest = worker_manifest()
    manifest["metadata"] |= {"finalizers": list(finalizers), "resourceVersion": "7"}
    if deleting:
        manifest["metadata"]["deletionTimestamp"] = NOW.isoformat()
    return manifest


def job(phase: str) -> Manifest:
    manifest = hypha_job(status={"phase": phase})
    manifest["metadata"]["resourceVersion"] = "8"
    return manifest


def test_only_objects_with_our_finalizers_are_released_and_others_stay() -> None:
    [holding] = holdings_of([worker(DRAIN, THEIRS), worker(THEIRS), worker()], [job("Running"), job("Failed")], None)
    assert (holding.finalizers, holding.others) == ((DRAIN,), (THEIRS,))
    assert (holding.running, holding.unreported) == (1, 2)
    assert holdings_of([worker(DRAIN)], [], "another") == []


def test_the_consequence_names_what_is_left_behind() -> None:
    [deleted] = holdings_of([worker(DRAIN, deleting=True)], [job("Running")], None)
    assert consequence(deleted) == (
        "It is deleted then, and the cluster deletes its pods and other objects; the schedulers of 1 job may not learn "
        "that they end."
    )
    [kept] = holdings_of([worker(DRAIN)], [], None)
    assert consequence(kept) == "It stays, and whoever deletes it later is not waited for."


def test_a_lease_that_is_over_belongs_to_nobody() -> None:
    over, current = (Held("a", "b", "c/d", NOW + timedelta(seconds=seconds)) for seconds in (-10, 10))
    assert living([None, over, current], NOW) == [current]


@pytest.fixture
def stuck(scene: Scene) -> Manifest:
    """A worker that somebody has deleted and whose operator is gone."""
    manifest = scene.serving("stuck")
    scene.user.merge(manifest, {"metadata": {"finalizers": [DRAIN, THEIRS]}})
    scene.job(manifest, "Running")
    scene.user.delete(manifest)
    return manifest


def lease(scene: Scene, age_s: float) -> None:
    renewed = datetime.now(UTC) - timedelta(seconds=age_s)
    spec = {"holderIdentity": "system/hypha/all", "leaseDurationSeconds": 300, "renewTime": renewed.isoformat()}
    scene.user.apply(
        {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": {"name": LEASE_NAME}, "spec": spec}
    )


def finalizers(scene: Scene, manifest: Manifest) -> list[str] | None:
    found = scene.user.get(manifest)
    return None if found is None else found["metadata"].get("finalizers", [])


def test_our_finalizers_are_removed_with_a_warning_and_others_stay(scene: Scene, stuck: Manifest) -> None:
    lease(scene, 400)
    done = scene.run("release", "stuck", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"HyphaWorker {scene.namespace}/stuck: {DRAIN}. It is deleted then" in done.stdout
    assert "the schedulers of 1 job may not learn that they end" in done.stdout
    assert f"kubectl delete lease hypha-operator -n {scene.namespace}" in done.stdout
    assert finalizers(scene, stuck) == [THEIRS]


def test_the_object_vanishes_if_only_our_finalizer_kept_it(scene: Scene, stuck: Manifest) -> None:
    scene.user.merge(stuck, {"metadata": {"finalizers": [DRAIN]}})
    assert scene.run("release", "--all", "-y").returncode == 0
    assert finalizers(scene, stuck) is None
    again = scene.run("release", "--all", "-y")
    assert (again.returncode, again.stdout.startswith("There is nothing to release")) == (0, True)


def test_nothing_is_removed_while_an_operator_lives_unless_it_is_forced(scene: Scene, stuck: Manifest) -> None:
    lease(scene, 100)
    refused = scene.run("release", "stuck", "--yes")
    assert refused.returncode == 1
    assert (
        f"an operator lives: release system/hypha holds Lease {scene.namespace}/hypha-operator until" in refused.stderr
    )
    assert finalizers(scene, stuck) == [DRAIN, THEIRS]
    forced = scene.run("release", "stuck", "--yes", "--force")
    assert forced.returncode == 0
    assert "It may set the finalizers again." in forced.stderr
    assert finalizers(scene, stuck) == [THEIRS]


def test_a_user_who_may_not_read_the_lease_does_not_release_by_chance(scene: Scene, stuck: Manifest) -> None:
    api, rights = scene.server, ("--verb=list,patch", "--resource=hyphaworkers.hypha.space,hyphajobs.hypha.space")
    api.kubectl("create", "role", "edit", f"-n{scene.namespace}", *rights)
    api.kubectl("create", "rolebinding", "edit", f"-n{scene.namespace}", "--role=edit", "--user=ed")
    ed = {"KUBECONFIG": str(api.user_kubeconfig("ed"))}
    refused = scene.run("release", "stuck", "--yes", **ed)
    assert refused.returncode == 1
    assert f"you may not read Lease {scene.namespace}/hypha-operator" in refused.stderr
    assert finalizers(scene, stuck) == [DRAIN, THEIRS]
    assert scene.run("release", "stuck", "--yes", "--force", **ed).returncode == 0
    assert finalizers(scene, stuck) == [THEIRS]


def test_without_a_terminal_it_needs_the_option(scene: Scene, stuck: Manifest) -> None:
    done = scene.run("release", "stuck")
    assert done.returncode == 2
    assert "there is no terminal. Use --yes." in done.stderr
    assert finalizers(scene, stuck) == [DRAIN, THEIRS]


@pytest.mark.parametrize(("answer", "code", "left"), [(b"y\n", 0, [THEIRS]), (b"\n", 130, [DRAIN, THEIRS])])
def test_a_terminal_is_asked(scene: Scene, stuck: Manifest, answer: bytes, code: int, left: list[str]) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hypha_kubectl", "release", "stuck", "-n", scene.namespace]
    environ = os.environ | {"KUBECONFIG": str(scene.server.kubeconfig)}
    with subprocess.Popen(command, env=environ, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.write(ours, answer)
        assert process.wait(30) == code
    assert b"Release 1 object? [y/N]:" in os.read(ours, 65536)
    assert finalizers(scene, stuck) == left
    os.close(ours)
    os.close(theirs)


def test_an_unknown_name_or_none_is_refused(scene: Scene) -> None:
    unknown = scene.run("release", "nobody")
    assert unknown.returncode == 1
    assert "no HyphaWorker or HyphaJob nobody in namespace" in unknown.stderr
    for arguments in ((), ("x", "--all")):
        done = scene.run("release", *arguments)
        assert done.returncode == 2
        assert "name a worker or a job, or use --all" in done.stderr
