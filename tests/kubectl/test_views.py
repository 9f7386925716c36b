"""What people want to know of workers and jobs, from the objects alone."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from hypha_contracts.job_reasons import JobReason
from hypha_contracts.kinds import Manifest
from hypha_contracts.reasons import WorkerReason
from hypha_contracts.text import number, short_peer
from hypha_kubectl.views.jobs import in_order, job_of, matching
from hypha_kubectl.views.jobs_table import Layout
from hypha_kubectl.views.shown import plain, progress, time_left_s
from hypha_kubectl.views.status_tree import MAX_ENDED, MAX_TREES, render
from hypha_kubectl.views.workers import Worker, workers_of
from support.kubectl import account, condition
from support.operator_objects import hypha_job, worker_manifest

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
READY = condition("Ready", True, WorkerReason.SERVING, "Connected.")
SELLS = {"conditions": [READY], "offering": {"enabled": True}, "observedGeneration": 1}


def at(seconds: float) -> str:
    return (NOW + timedelta(seconds=seconds)).isoformat()


def worker(name: str = "gpu-worker", /, *, status: dict[str, Any] | None = None, **spec: Any) -> Manifest:
    manifest = worker_manifest(**spec)
    manifest["metadata"] |= {"name": name, "creationTimestamp": at(-3600)}
    return manifest | {"status": SELLS if status is None else status}


def view(manifest: Manifest, *jobs: Manifest) -> Worker:
    [found] = workers_of([manifest], jobs, NOW)
    return found


def job(phase: str = "Running", *, price: float = 10.0, accepted: float = -60, **status: Any) -> Manifest:
    lease = {"id": "00000000-0000-4000-8000-000000000001", "deadline": at(20), "price": price, "accepted": at(accepted)}
    return hypha_job(status={"phase": phase, **status}, lease=lease)


def drawn(*workers: Worker, width: int = 120) -> str:
    console = Console(width=width, file=None, record=True, color_system=None)
    with console.capture() as capture:
        console.print(render(workers, NOW))
    return capture.get()


class TestWhyAWorkerMakesNoOffers:
    def test_a_worker_that_serves_makes_offers(self) -> None:
        found = view(worker())
        assert (found.offers, found.obstacles, found.ready) == (True, (), True)

    def test_a_worker_of_which_nobody_reported_has_no_operator(self) -> None:
        found = view(worker(status={}))
        assert (found.offers, found.ready, found.reason) == (False, None, "NotReported")
        assert "kubectl hypha check" in found.obstacles[0].remedy

    def test_a_suspended_worker_names_its_deadline_and_the_command_that_resumes_it(self) -> None:
        [obstacle] = view(worker(suspend=True, suspendDeadline="2030-01-31T08:00:00Z")).obstacles
        assert obstacle.reason == "Suspended"
        assert "at 2030-01-31T08:00:00Z" in obstacle.message
        assert obstacle.remedy == "Run `kubectl hypha resume gpu-worker -n gpu`."

    def test_the_remedy_of_a_condition_is_not_said_twice(self) -> None:
        reason = WorkerReason.NO_GATEWAY
        ready = condition("Ready", False, reason, f"No gateway answers. {reason.remedy} See Secret x.")
        [obstacle] = view(worker(status={"conditions": [ready]})).obstacles
        assert obstacle.message == "No gateway answers. See Secret x."
        assert obstacle.remedy == reason.remedy

    def test_a_reason_of_a_newer_operator_has_no_remedy(self) -> None:
        [obstacle] = view(worker(status={"conditions": [condition("Ready", False, "Novel", "Odd.")]})).obstacles
        assert (obstacle.reason, obstacle.message, obstacle.remedy) == ("Novel", "Odd.", "")

    def test_a_ready_worker_whose_executors_are_not_validated_yet_waits_for_that(self) -> None:
        [obstacle] = view(worker(status={"conditions": [READY]})).obstacles
        assert obstacle.reason == WorkerReason.NOT_VALIDATED

    def test_a_ready_worker_whose_jobs_do_not_start_says_why_with_the_jobs_remedy(self) -> None:
        conditions = [
            READY,
            condition("ExecutorsValid", True, "Validated"),
            condition("JobsStart", False, "ImagePull", "x"),
        ]
        [obstacle] = view(worker(status={"conditions": conditions, "offering": {"enabled": False}})).obstacles
        assert (obstacle.reason, obstacle.message) == ("ImagePull", "x")

    def test_a_worker_that_is_deleted_drains(self) -> None:
        manifest = worker(suspend=True)
        manifest["metadata"]["deletionTimestamp"] = at(0)
        assert [obstacle.reason for obstacle in view(manifest).obstacles] == ["Serving"]

    def test_a_certificate_that_expires_soon_and_an_operator_that_lags_are_warnings(self) -> None:
        soon = condition("IdentityValid", True, WorkerReason.CERTIFICATE_EXPIRES_SOON, "It expires.")
        found = view(worker(status=SELLS | {"conditions": [READY, soon], "observedGeneration": 0}))
        assert found.offers
        assert [warning.reason for warning in found.warnings] == ["CertificateExpiresSoon", "NotObserved"]

    def test_refused_requests_are_a_problem_only_if_none_was_considered(self) -> None:
        refusal = {"reason": "BidBelowFloor", "message": "60 is below the floor"}

        def requests(considered: int) -> Any:
            counted = {"considered": considered, "refused": 9, "lastRefusal": refusal}
            return view(worker(status=SELLS | {"node": {"requests": counted}})).requests

        assert requests(1).problem is None
        assert requests(0).problem.remedy == WorkerReason.BID_BELOW_FLOOR.remedy


def test_what_leases_use_is_shown_beside_what_quotas_leave_of_the_offer() -> None:
    status = SELLS | {
        "capacity": {"cpu": 8.0, "memory": 64.0, "gpu": 0.0},
        "offering": {"enabled": True, "limit": {"cpu": 8.0, "memory": 32.0}},
        "node": {"allocated": {"cpu": 2.0, "memory": 32.0}},
    }
    found = view(worker(status=status))
    assert [(a.resource, a.used, a.limit, a.total) for a in found.amounts] == [("cpu", 2, 8, 8), ("memory", 32, 32, 64)]
    assert found.is_full
    assert "memory 32 of 64 GB, now at most 32" in drawn(found)
    assert "all of it is leased now" in drawn(found)


def test_earnings_are_those_of_ended_leases_and_price_times_seconds_of_those_that_run() -> None:
    vacant = {"id": "x", "scheduler": "S", "executors": [], "price": 2.0, "accepted": at(-5)}
    node = {"accounts": [account("A", 2, 100, 1000), account("other", 1, 10, 50)], "leases": [vacant]}
    ended = job("Succeeded", completionTime=at(-30))
    found = view(worker(status=SELLS | {"node": node}), job(), ended)
    assert (found.earnings.ended, found.earnings.leases, found.earnings.schedulers) == (1050, 3, 2)
    assert found.earnings.running == 10 * 60 + 2 * 5
    assert [j.earned for j in found.jobs] == [600, 300]


def test_the_price_is_the_default_if_the_specification_has_none() -> None:
    assert (view(worker()).price, view(worker()).floor) == (100, 100)
    cheap = view(worker(offer={"price": 7}))
    assert (cheap.price, cheap.floor) == (7, 7)


def test_jobs_belong_to_the_worker_of_their_namespace_and_name() -> None:
    elsewhere = worker()
    elsewhere["metadata"] = elsewhere["metadata"] | {"namespace": "other"}
    first, second = workers_of([elsewhere, worker()], [job()], NOW)
    assert (first.namespace, len(first.jobs)) == ("gpu", 1)
    assert (second.namespace, len(second.jobs)) == ("other", 0)


def test_a_failed_job_says_why_and_what_to_do() -> None:
    failed = job(
        "Failed", reason="OutOfMemory", conditions=[condition("Ready", False, "OutOfMemory", "More than 16 GB.")]
    )
    problem = job_of(failed, NOW).problem
    assert problem is not None
    assert (problem.reason, problem.remedy) == ("OutOfMemory", JobReason.OUT_OF_MEMORY.remedy)
    assert job_of(job(), NOW).problem is None


def test_jobs_that_run_come_first_and_newer_ones_before_older_ones() -> None:
    jobs = [job_of(job(phase), NOW) for phase in ("Succeeded", "Pending", "Failed", "Running")]
    assert [found.phase for found in in_order(jobs)] == ["Running", "Pending", "Failed", "Succeeded"]


def test_a_job_is_named_by_the_beginning_of_its_name_or_of_its_task() -> None:
    jobs = [{"metadata": {"name": name}} for name in ("hypha-12ab", "hypha-12cd", "hypha-12ab-x")]
    assert matching(jobs, "hypha-12ab") == jobs[:1]
    assert matching(jobs, "12c") == [jobs[1]]
    assert matching(jobs, "hypha-12") == jobs
    assert matching(jobs, "x") == []


def test_text_of_peers_and_jobs_cannot_control_the_terminal() -> None:
    evil = "\x1b[2J[red]\u202eboo"
    status = SELLS | {
        "conditions": [condition("Ready", False, "Novel", evil)],
        "node": {"gateways": [evil], "circuits": [evil], "accounts": [account(evil, 1, 1, 1)]},
    }
    failed = job("Failed", conditions=[condition("Ready", False, "Novel", evil)], progress={"metrics": {evil: 1.0}})
    found = view(worker(status=status), failed)
    assert "\x1b" not in drawn(found)
    assert "\u202e" not in drawn(found)
    assert "[red]" in drawn(found)


def test_only_some_ended_jobs_are_shown() -> None:
    text = drawn(view(worker(), *(job("Succeeded") for _ in range(MAX_ENDED + 3))))
    assert text.count("Succeeded ") == MAX_ENDED
    assert "and 3 more that ended" in text


def test_several_workers_have_a_summary() -> None:
    one, other = view(worker(), job()), view(worker("b", status={}))
    assert "2 workers, 1 of them offers; jobs: 1 running; earned 600" in drawn(one, other)


def test_of_many_workers_each_has_a_line_and_only_those_that_lack_something_a_tree() -> None:
    many = [view(worker(f"w{number}"), job()) for number in range(MAX_TREES)]
    resting, broken = view(worker("resting", suspend=True)), view(worker("broken", status={}))
    text = drawn(*many, resting, broken)
    assert text.splitlines()[0].split() == ["WORKER", "STATE", "JOBS", "LEASED", "EARNED"]
    assert text.count("├") + text.count("└") == 1
    assert "└── no offers NotReported" in text
    assert "`kubectl hypha status WORKER` shows one in full." in text


def test_the_way_to_a_worker_is_named_as_far_as_it_is_known() -> None:
    def network(**node: Any) -> str:
        return drawn(view(worker(status=SELLS | {"node": {"peerId": "P", **node}})))

    assert "0 gateways, peers cannot reach it yet" in network()
    assert "1 gateway, listens at /ip4/10.0.0.1/tcp/1" in network(gateways=["g"], listening=["/ip4/10.0.0.1/tcp/1"])
    assert "peers reach it not before" in network(gateways=["g"], reach="none")
    assert "peers reach it" not in network(gateways=["g"], reach="by carrier pigeon")
    assert "1 gateway, reached through gateways" in network(gateways=["g"], circuits=["c"], listening=["l"])


def test_a_lease_that_is_over_says_so() -> None:
    late = job()
    late["spec"]["lease"]["deadline"] = at(-7)
    assert "lease over for 7s" in drawn(view(worker(), late))


def test_the_json_has_plain_values() -> None:
    shown = plain(view(worker(), job()))
    assert shown["created"] == "2026-01-01T11:00:00Z"
    assert shown["jobs"][0]["earned"] == 600
    assert shown["obstacles"] == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.03125, "0.03125"), (131.57, "131.6"), (1516800.4, "1,516,800")],
)
def test_numbers_have_few_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_peer_id_is_cut_in_the_middle() -> None:
    assert short_peer("12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X") == "12D3KooW..9HyQ6X"
    assert short_peer("other") == "other"


def test_the_end_of_a_job_is_shown_only_while_it_runs_and_states_its_length() -> None:
    end = (NOW + timedelta(hours=2, minutes=5)).isoformat()
    stated = {"round": 3, "batches": 480, "totalBatches": 2000, "roundsPerHour": 12.5, "estimatedEnd": end}
    running, ended = (job_of(job(phase, progress=stated), NOW) for phase in ("Running", "Succeeded"))
    assert progress(running, NOW) == "round 3, batch 480 of 2,000, 12.5 rounds/h, about 2h5m left"
    assert progress(ended, NOW) == "round 3"
    assert progress(running, NOW + timedelta(hours=3)) == "round 3, batch 480 of 2,000, 12.5 rounds/h"
    assert time_left_s(job_of(job(progress={"round": 3}), NOW), NOW) is None


class TestTheTableOfJobs:
    JOBS = (job_of(job(progress={"round": 3, "metrics": {"loss": 0.25}}, nodeName="node-1"), NOW),)

    def lines(self, width: int | None, *, namespaces: bool = False) -> list[str]:
        layout = Layout(self.JOBS, NOW, width, namespaces=namespaces)
        return [layout.header().plain, *(layout.row(j, NOW).plain for j in self.JOBS)]

    def test_a_file_gets_every_column_and_complete_names(self) -> None:
        header, row = self.lines(None, namespaces=True)
        assert header.split()[0] == "NAMESPACE"
        assert header.split()[-1] == "REASON"
        assert self.JOBS[0].name in row

    @pytest.mark.parametrize("width", [200, 120, 80, 60, 40, 20])
    def test_no_line_is_wider_than_the_terminal(self, width: int) -> None:
        assert all(len(line) <= width for line in self.lines(width))

    def test_a_narrow_terminal_keeps_name_phase_and_age(self) -> None:
        header, row = self.lines(40)
        assert header.split()[:3] == ["JOB", "PHASE", "AGE"]
        assert row.split()[0] == self.JOBS[0].short_name

    def test_columns_are_aligned(self) -> None:
        header, row = self.lines(100)
        assert row[header.index("PHASE") :].startswith("Running")
        assert header.index("LOSS") + 4 == row.index("0.25") + 4
