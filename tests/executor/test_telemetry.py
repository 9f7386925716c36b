"""The executor's spans and metrics: what is sent, and that nothing costs the executor anything."""

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hypha_executor.resources import Resources
from hypha_executor.telemetry import Telemetry

TRACE = "ab" * 16
PARENT = "cd" * 8
SAMPLED = {"TRACEPARENT": f"00-{TRACE}-{PARENT}-01"}


class Receiver:
    """What was sent, by kind."""

    def __init__(self, environ: dict[str, str], **options: Any) -> None:
        self.batches: list[dict[str, Any]] = []
        self.telemetry = Telemetry(self.batches.append, environ, **options)

    def close(self) -> "Receiver":
        self.telemetry.close()
        return self

    @property
    def spans(self) -> dict[str, dict[str, Any]]:
        return {span["name"]: span for batch in self.batches for span in batch["spans"]}

    @property
    def metrics(self) -> dict[tuple[str, ...], float]:
        found = [metric for batch in self.batches for metric in batch["metrics"]]
        return {(metric["name"], *metric["attributes"].values()): metric["value"] for metric in found}


def test_nested_spans_have_their_parents_and_errors_and_reach_the_receiver_at_the_end() -> None:
    receiver = Receiver(SAMPLED)
    inner = ""
    with suppress(ValueError), receiver.telemetry.span("outer", {"round": 1}) as attributes:
        attributes["bytes"] = 5
        with receiver.telemetry.span("inner"):
            inner = receiver.telemetry.traceparent or ""
        raise ValueError("no")
    spans = receiver.close().spans
    assert {batch["trace_id"] for batch in receiver.batches} == {TRACE}
    assert spans["outer"]["parent_id"] == PARENT
    assert spans["inner"]["parent_id"] == spans["outer"]["span_id"]
    assert inner == f"00-{TRACE}-{spans['inner']['span_id']}-01"
    assert spans["outer"]["attributes"] == {"round": 1, "bytes": 5}
    assert (spans["outer"]["error"], spans["inner"]["error"]) == ("ValueError: no", None)
    assert spans["outer"]["start_ns"] <= spans["inner"]["start_ns"] <= spans["inner"]["end_ns"] <= time.time_ns()


def test_counters_send_increases_and_gauges_their_last_value() -> None:
    receiver = Receiver(SAMPLED)
    for size in (1, 2):
        receiver.telemetry.add("bytes", size, {"source": "hub"})
        receiver.telemetry.set("loss", size)
    receiver.telemetry.set("loss", float("nan"))
    assert receiver.close().metrics == {("bytes", "hub"): 3, ("loss",): 2}


@pytest.mark.parametrize("environ", [{}, {"TRACEPARENT": "00-nonsense"}])
def test_without_a_trace_context_nothing_is_recorded_and_no_thread_starts(environ: dict[str, str]) -> None:
    before = threading.active_count()
    receiver = Receiver(environ)
    with receiver.telemetry.span("batch"):
        receiver.telemetry.add("bytes", 1)
    assert threading.active_count() == before
    assert receiver.telemetry.traceparent is None
    assert receiver.close().batches == []


def test_an_unsampled_trace_sends_metrics_only() -> None:
    receiver = Receiver({"TRACEPARENT": f"00-{TRACE}-{PARENT}-00"})
    with receiver.telemetry.span("batch"):
        receiver.telemetry.add("bytes", 1)
    assert receiver.close().spans == {}
    assert receiver.metrics == {("bytes",): 1}


def test_a_bridge_that_fails_or_hangs_never_reaches_the_executor() -> None:
    hang = threading.Event()

    def fail(_batch: object) -> None:
        hang.wait()
        raise OSError("no bridge")

    telemetry = Telemetry(fail, SAMPLED)
    for _ in range(5000):
        with telemetry.span("batch"):
            pass
    before = time.monotonic()
    telemetry.close(timeout_s=0.1)
    assert time.monotonic() - before < 5
    hang.set()


def test_a_span_of_another_trace_becomes_no_parent() -> None:
    receiver = Receiver(SAMPLED)
    with receiver.telemetry.within(f"00-{'ef' * 16}-{'12' * 8}-01"), receiver.telemetry.span("mine"):
        pass
    with receiver.telemetry.within(f"00-{TRACE}-{'12' * 8}-01"), receiver.telemetry.span("theirs"):
        pass
    spans = receiver.close().spans
    assert (spans["mine"]["parent_id"], spans["theirs"]["parent_id"]) == (PARENT, "12" * 8)


def test_a_container_reports_increases_of_its_control_group(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("4096\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\n")
    (tmp_path / "io.stat").write_text("8:0 rbytes=10 wbytes=20 rios=1 wios=1\n8:16 rbytes=5 wbytes=0\n")
    resources = Resources(tmp_path)
    receiver = Receiver(SAMPLED, measure=resources.measure)
    receiver.telemetry.add("start", 1)
    assert receiver.close().metrics == {
        ("start",): 1,
        ("hypha.job.cpu.time", "user"): 2.0,
        ("hypha.job.cpu.time", "system"): 1.0,
        ("hypha.job.memory.usage",): 4096.0,
        ("hypha.job.disk.io", "read"): 15,
        ("hypha.job.disk.io", "write"): 20,
    }
    (tmp_path / "cpu.stat").write_text("usage_usec 3500000\nuser_usec 2500000\nsystem_usec 1000000\n")
    again = Receiver(SAMPLED)
    resources.measure(again.telemetry)
    metrics = again.close().metrics
    assert metrics[("hypha.job.cpu.time", "user")] == 0.5
    assert ("hypha.job.disk.io", "read") not in metrics


def test_a_host_without_containers_reports_nothing(tmp_path: Path) -> None:
    receiver = Receiver(SAMPLED, measure=Resources(tmp_path).measure)
    receiver.telemetry.add("start", 1)
    assert receiver.close().metrics == {("start",): 1}


class RenderedNvml:
    """NVIDIA's library in the form that its documentation describes. No GPU is needed."""

    NVMLError = OSError

    def nvmlInit(self) -> None: ...  # noqa: N802 - its names

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUtilizationRates(self, _device: int) -> Any:  # noqa: N802
        return type("Utilization", (), {"gpu": 75, "memory": 10})()

    def nvmlDeviceGetMemoryInfo(self, _device: int) -> Any:  # noqa: N802
        return type("Memory", (), {"total": 100, "used": 60, "free": 40})()


def test_gpus_are_reported_in_the_form_of_the_nvidia_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests the form only: this machine needs no GPU."""
    monkeypatch.setattr("hypha_executor.resources.importlib.import_module", lambda _name: RenderedNvml())
    (tmp_path / "memory.current").write_text("1\n")
    receiver = Receiver(SAMPLED, measure=Resources(tmp_path).measure)
    receiver.telemetry.add("start", 1)
    metrics = receiver.close().metrics
    assert (metrics["hw.gpu.utilization", "0"], metrics["hw.gpu.memory.usage", "0"]) == (0.75, 60.0)
