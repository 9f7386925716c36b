from hypha_worker.market.starts import StartRecord


def record(*, proven_at: float | None = None) -> StartRecord:
    starts = StartRecord()
    starts.on_proven(proven_at)
    return starts


def test_a_proven_worker_has_no_limit() -> None:
    assert record(proven_at=1.0).max_unstarted is None


def test_an_unproven_worker_tries_two_jobs_and_is_proven_by_the_first_that_starts() -> None:
    starts = record()
    assert starts.max_unstarted == 2
    starts.on_started(5.0)
    assert starts.max_unstarted is None


def test_each_failed_start_of_an_unproven_worker_leaves_one_try_less() -> None:
    starts = record()
    starts.on_failed(1.0)
    assert starts.max_unstarted == 1
    starts.on_failed(2.0)
    assert starts.max_unstarted == 0


def test_two_failed_starts_stop_a_proven_worker_and_a_start_allows_offers_again() -> None:
    starts = record(proven_at=1.0)
    starts.on_failed(2.0)
    assert starts.max_unstarted == 1
    starts.on_failed(3.0)
    starts.on_failed(4.0)
    assert starts.max_unstarted == 0
    starts.on_started(5.0)
    assert starts.max_unstarted is None


def test_only_a_proof_after_the_failures_allows_offers_again() -> None:
    starts = record(proven_at=1.0)
    starts.on_failed(2.0)
    starts.on_failed(3.0)
    starts.on_proven(1.0)
    assert starts.max_unstarted == 0
    starts.on_proven(2.5)
    assert starts.max_unstarted == 1
    starts.on_proven(4.0)
    assert starts.max_unstarted is None


def test_a_failure_before_the_proof_that_the_node_learns_of_late_stops_nothing() -> None:
    starts = record(proven_at=5.0)
    starts.on_failed(4.0)
    starts.on_failed(5.0)
    assert starts.max_unstarted is None


def test_a_start_before_the_proof_was_withdrawn_proves_nothing() -> None:
    starts = record(proven_at=1.0)
    starts.on_started(2.0)
    starts.on_proven(None)
    assert starts.max_unstarted == 2


def test_a_start_that_the_operator_does_not_know_yet_is_a_proof() -> None:
    starts = record()
    starts.on_started(2.0)
    starts.on_proven(None)
    assert starts.max_unstarted is None
