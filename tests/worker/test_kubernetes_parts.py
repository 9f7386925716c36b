"""What the Kubernetes runtime is made of: objects, progress, writes that follow a state."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from hypha_contracts.kubernetes_errors import Unavailable
from hypha_contracts.names import IGNORE_UPDATES_ANNOTATION, TRACE_ANNOTATION, WORKER_LABEL
from hypha_contracts.node_config import KubernetesConfig
from hypha_messages.job import JobSpec
from hypha_worker.job import Failed, Finished
from hypha_worker.runtimes.kubernetes.jobs import HyphaJobs
from hypha_worker.runtimes.kubernetes.objects import end_of, hypha_job, job_secret, parse
from hypha_worker.runtimes.kubernetes.throttle import Throttle
from support import jobs

CONFIG = KubernetesConfig(namespace="ns", worker="w", worker_uid="worker-uid")
CONTROLLER = uuid4()


def seen(spec: JobSpec, **status: Any) -> Any:
    """A job as the cluster has it after it was launched."""
    made = hypha_job(jobs.job(spec, cpu=1, memory=2, storage=3, gpu=4), CONFIG, jobs.DATA_NODE, CONTROLLER)
    return parse(made | {"metadata": made["metadata"] | {"uid": "1"}, "status": status})


@pytest.mark.parametrize(
    "spec", [jobs.train_spec(), jobs.aggregate_spec([jobs.SCHEDULER]), jobs.inference_spec([jobs.SCHEDULER])]
)
def test_a_job_comes_back_from_its_object(spec: JobSpec) -> None:
    launched = jobs.job(spec, cpu=1.5, memory=2, storage=3, gpu=4)
    made = hypha_job(launched, CONFIG, jobs.DATA_NODE, CONTROLLER)
    back = parse(made | {"metadata": made["metadata"] | {"uid": "1"}}).job(launched.deadline)
    assert (back.task_id, back.lease_id, back.scheduler) == (launched.task_id, launched.lease_id, launched.scheduler)
    assert (back.spec, back.resources) == (launched.spec, launched.resources)


def test_the_objects_of_a_job_have_the_common_labels_and_annotations_of_the_worker_and_their_own() -> None:
    config = CONFIG.model_copy(
        update={"common_labels": {"team": "ml", WORKER_LABEL: "forged"}, "common_annotations": {"cost": "7 a day"}}
    )
    launched = replace(jobs.job(jobs.train_spec()), traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01")
    made = hypha_job(launched, config, jobs.DATA_NODE, CONTROLLER)["metadata"]
    secret = job_secret(launched, config, "uid")["metadata"]
    assert made["labels"] == secret["labels"] == {"team": "ml", WORKER_LABEL: "w"}
    assert secret["annotations"] == {"cost": "7 a day"}
    own = {TRACE_ANNOTATION: launched.traceparent, IGNORE_UPDATES_ANNOTATION: "true"}
    assert made["annotations"] == {"cost": "7 a day", **own}


def test_a_job_with_secrets_comes_back_without_them() -> None:
    model = {"type": "uri", "value": "https://me:secret@host.example/m?signature=secret"}
    spec = jobs.train_spec(model={"task": "auto", "artifact": model, "input-names": []})
    assert "secret" not in str(hypha_job(jobs.job(spec), CONFIG, jobs.DATA_NODE, CONTROLLER))
    assert seen(spec).job(0).spec.executor.config.model.artifact.value == "https://host.example"
    assert "signature=secret" in job_secret(jobs.job(spec), CONFIG, "uid")["stringData"]["job.json"]


@pytest.mark.parametrize(
    "address",
    ["https://host.example?signature=secret", "https:/host.example/m?signature=secret", "me:secret@host.example/m"],
)
def test_an_address_of_any_form_keeps_its_secrets(address: str) -> None:
    spec = jobs.train_spec(model={"task": "auto", "artifact": {"type": "uri", "value": address}, "input-names": []})
    assert "secret" not in str(hypha_job(jobs.job(spec), CONFIG, jobs.DATA_NODE, CONTROLLER))
    assert seen(spec).job(0).spec.job_id == spec.job_id


@pytest.mark.parametrize(
    "damage", [{}, {"metadata": {}}, {"metadata": {"uid": "1"}}, {"metadata": {"uid": "1"}, "spec": {}}]
)
def test_an_invalid_hypha_job_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"missing|required"):
        parse(damage)


def test_the_end_of_a_job_says_why() -> None:
    assert isinstance(end_of(seen(jobs.train_spec(), phase="Succeeded")), Finished)
    bare = end_of(seen(jobs.train_spec(), phase="Failed"))
    assert isinstance(bare, Failed)
    assert (bare.reason, bare.last_lines) == ("it failed", ())


@pytest.mark.anyio
class TestThrottle:
    @pytest.fixture
    def anyio_backend(self) -> tuple[str, dict[str, Any]]:
        return "trio", {"clock": MockClock(autojump_threshold=0)}

    async def test_it_writes_at_once_then_at_intervals_and_the_latest_always(self) -> None:
        state, written = 0, []

        async def write() -> None:
            await trio.lowlevel.checkpoint()
            written.append((trio.current_time(), state))

        throttle = Throttle(lambda: 5.0, write)
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(throttle.run)
            for state in range(1, 13):  # noqa: B007 - what is written
                throttle.want()
                await trio.sleep(1.1)
            await trio.sleep(100)
            nursery.cancel_scope.cancel()
        assert [(round(at - started), value) for at, value in written] == [(0, 1), (5, 5), (10, 10), (15, 12)]

    async def test_its_interval_may_change(self) -> None:
        started, written = trio.current_time(), []

        async def write() -> None:
            await trio.lowlevel.checkpoint()
            written.append(round(trio.current_time() - started))
            throttle.want()

        throttle = Throttle(lambda: len(written), write)
        throttle.want()
        with trio.move_on_after(11):
            await throttle.run()
        assert written == [0, 1, 3, 6, 10]

    async def test_a_cancelled_write_can_still_be_flushed(self) -> None:
        attempts = []

        async def write() -> None:
            attempts.append(trio.current_time())
            if len(attempts) == 1:
                await trio.sleep_forever()

        throttle = Throttle(lambda: 5.0, write)
        throttle.want()
        with trio.move_on_after(1):
            await throttle.run()
        await throttle.flush()
        await throttle.flush()
        assert len(attempts) == 2


def test_tasks_have_distinct_names() -> None:
    first, second = (
        hypha_job(jobs.job(jobs.train_spec(uuid4())), CONFIG, jobs.DATA_NODE, CONTROLLER) for _ in range(2)
    )
    assert first["metadata"]["name"] != second["metadata"]["name"]


def test_after_an_outage_the_deadline_is_written_that_is_then_current() -> None:
    """Renewals go on during an outage, so the deadline of the first attempt may have passed."""

    class Away:
        """An API server that is away for an hour."""

        def __init__(self) -> None:
            self.written: list[str] = []

        async def patch(self, path: str, operations: Sequence[Mapping[str, str]]) -> dict[str, Any]:
            await trio.lowlevel.checkpoint()
            if trio.current_time() < 3600:
                raise Unavailable(path, 0, "", "no answer")
            self.written.append(operations[1]["value"])
            return {}

    async def outage() -> None:
        hypha_jobs = HyphaJobs(api, CONFIG, jobs.DATA_NODE, keep_ended_s=0)  # type: ignore[arg-type]
        await hypha_jobs.extend(uuid4(), lambda: trio.current_time() + 300)

    api = Away()
    trio.run(outage, clock=MockClock(rate=0, autojump_threshold=0))
    (written,) = api.written
    assert 3900 <= datetime.fromisoformat(written).timestamp() < 3910
