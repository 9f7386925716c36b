"""Checks the model hub, the wheels of executors and the telemetry collector, and the clock by their answers."""

import ctypes
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

import httpx
import trio

from hypha_contracts.findings import Finding, failure, ok, skipped, warning
from hypha_telemetry.settings import Otlp, SettingsError, read_settings
from hypha_worker.doctor.worker import Worker

_TIMEOUT_S: Final = 8.0
_DEFAULT_URL: Final = "http://localhost:4318/v1/metrics"
_HUB: Final = "https://huggingface.co"
_MAX_OFFSET_S: Final = 2.0
"""An offer waits half a second for its scheduler, and the dates of HTTP are rounded to seconds."""
_TIME_ERROR: Final = 5
_TIMEX_BYTES: Final = 512


@dataclass(frozen=True)
class Reply:
    """The answer of an HTTP server: its status, or why there is none, and how far its clock is ahead in seconds."""

    status: int | None
    reason: str
    offset_s: float | None = None


async def ask(method: str, url: str, headers: Mapping[str, str] | None = None, content: bytes | None = None) -> Reply:
    """Send a request and return the reply. The body is ignored."""
    try:
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, follow_redirects=True) as client:
            began = time.time()
            async with client.stream(method, url, headers=headers, content=content) as response:
                middle = (began + time.time()) / 2
                return Reply(response.status_code, response.reason_phrase, _offset_s(response.headers, middle))
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return Reply(None, str(error) or type(error).__name__)


def _offset_s(headers: httpx.Headers, now: float) -> float | None:
    try:
        return parsedate_to_datetime(headers["date"]).timestamp() + 0.5 - now  # the date is rounded down
    except (KeyError, ValueError):
        return None


def _setting(worker: Worker, name: str) -> str | None:
    """Return a variable of an executor, or of this process."""
    own = (executor.env[name] for executor in worker.host_config.executors if name in executor.env)
    return next(own, worker.environ.get(name)) or None


async def hub(worker: Worker) -> Iterable[Finding]:
    """Return whether the model hub answers and knows the token."""
    endpoint, token = _setting(worker, "HF_ENDPOINT"), _setting(worker, "HF_TOKEN")
    if endpoint is None and token is None:
        return [skipped("neither HF_ENDPOINT nor HF_TOKEN is set; jobs bring their own tokens for the public hub")]
    base = (endpoint or _HUB).rstrip("/")
    if token is None:
        return [judge_hub(base, await ask("GET", base), with_token=False)]
    reply = await ask("GET", f"{base}/api/whoami-v2", {"Authorization": f"Bearer {token}"})
    findings = [judge_hub(base, reply, with_token=True)]
    if not any("HF_TOKEN" in executor.env for executor in worker.host_config.executors):
        findings.append(
            warning(
                "HF_TOKEN in the environment of the node is not given to jobs",
                "Have the scheduler put a token into its references, or set HF_TOKEN in the executor's env.",
            )
        )
    return findings


def judge_hub(base: str, reply: Reply, *, with_token: bool) -> Finding:
    """Return whether the model hub can be used."""
    if reply.status is None:
        return failure(
            f"the model hub {base} does not answer: {reply.reason}",
            "Correct HF_ENDPOINT, or check the proxy and firewall of this machine.",
        )
    if with_token and reply.status in (401, 403):
        return failure(f"the model hub {base} refuses the token in HF_TOKEN", "Make a new token that may read.")
    if reply.status >= 500:
        return warning(f"the model hub {base} answers {reply.status} {reply.reason}", "Try again later.")
    return ok(f"the model hub {base} answers" + (" and knows the token" if with_token and reply.status < 400 else ""))


async def wheels(worker: Worker) -> Iterable[Finding]:
    """Return whether the wheels that executors install can be downloaded."""
    urls = {arg for executor in worker.host_config.executors for arg in executor.args if _is_wheel(arg)}
    found = [judge_wheel(url, await ask("HEAD", url)) for url in sorted(urls)]
    return found or [skipped("no executor installs a wheel from an address")]


def _is_wheel(arg: str) -> bool:
    return arg.startswith(("https://", "http://")) and arg.partition("#")[0].endswith(".whl")


def judge_wheel(url: str, reply: Reply) -> Finding:
    """Return whether a wheel can be downloaded."""
    name = url.rpartition("/")[2]
    if reply.status == 404:
        return failure(
            f"the wheel {name} does not exist at its address", "Correct the address; it must name an actual release."
        )
    if reply.status is None or reply.status >= 400:
        return warning(
            f"the wheel {name} cannot be downloaded: {reply.status or reply.reason}",
            "Check the address, and the proxy and firewall of this machine.",
        )
    return ok(f"the wheel {name} can be downloaded")


async def collector(worker: Worker) -> Iterable[Finding]:
    """Return whether the telemetry collector accepts an empty export."""
    try:
        otlp = _otlp(worker)
    except SettingsError as error:
        return [failure(str(error), "Correct telemetry_headers, or the file that telemetry_headers_file names.")]
    if otlp is None:
        return [skipped("no metrics are sent to a collector")]
    if otlp.protocol == "grpc":
        endpoint = otlp.endpoint or "localhost:4317"
        return [judge_port(endpoint, await _connect(endpoint))]
    return [judge_collector(otlp.endpoint or _DEFAULT_URL, await _export_nothing(otlp))]


def _otlp(worker: Worker) -> Otlp | None:
    """Return how metrics are sent to a collector, or None. SettingsError if the headers cannot be used."""
    return read_settings(worker.environ, worker.config).otlp.get("metrics")


async def _export_nothing(otlp: Otlp) -> Reply:
    """Send an export without metrics, over HTTP."""
    headers = {name: value.get_secret_value() for name, value in otlp.headers.items()}
    return await ask("POST", otlp.endpoint or _DEFAULT_URL, headers | {"Content-Type": "application/x-protobuf"}, b"")


def judge_collector(endpoint: str, reply: Reply) -> Finding:
    """Return whether the collector takes data."""
    if reply.status is None:
        return failure(
            f"the telemetry collector {endpoint} does not answer: {reply.reason}",
            "Start it, or correct telemetry_endpoint. Collectors serve HTTP on port 4318.",
        )
    if reply.status in (401, 403):
        return failure(
            f"the telemetry collector {endpoint} refuses this worker ({reply.status})", "Correct telemetry_headers."
        )
    if reply.status >= 400:
        return failure(
            f"the telemetry collector {endpoint} answers {reply.status} {reply.reason}",
            "Correct telemetry_endpoint: without a path, and with the port that serves OTLP over HTTP.",
        )
    return ok(f"the telemetry collector {endpoint} takes data")


async def _connect(endpoint: str) -> str | None:
    """Return why nothing listens at an endpoint."""
    url = httpx.URL(endpoint if "://" in endpoint else f"http://{endpoint}")
    try:
        with trio.fail_after(_TIMEOUT_S):
            await (await trio.open_tcp_stream(url.host, url.port or 4317)).aclose()
    except trio.TooSlowError:
        return f"no connection within {_TIMEOUT_S:g} s"
    except OSError as error:
        return str(error.__cause__ or error)
    return None


def judge_port(endpoint: str, problem: str | None) -> Finding:
    """Return whether something listens at the collector's address."""
    if problem:
        return failure(
            f"the telemetry collector {endpoint} does not answer: {problem}",
            "Start it, or correct telemetry_endpoint. Collectors serve gRPC on port 4317.",
        )
    return ok(f"something listens at the telemetry collector's address {endpoint}")


async def clock(worker: Worker) -> Iterable[Finding]:
    """Return whether the clock is right, by the kernel and by the servers that are configured anyway."""
    offsets = {}
    with suppress(SettingsError):  # which the check of the collector reports
        if (otlp := _otlp(worker)) is not None and otlp.protocol != "grpc":
            offsets["the telemetry collector"] = (await _export_nothing(otlp)).offset_s
    if worker.config.kubernetes is None and (endpoint := _setting(worker, "HF_ENDPOINT")):
        offsets["the model hub"] = (await ask("GET", endpoint)).offset_s
    known = {name: offset_s for name, offset_s in offsets.items() if offset_s is not None}
    return list(judge_clock(_is_synchronised(), known))


def judge_clock(synchronised: bool | None, offsets: Mapping[str, float]) -> Iterator[Finding]:
    """Yield whether the clock is right. `offsets` are how far the clocks of servers are ahead, in seconds."""
    remedy = "Run a time service such as chrony or systemd-timesyncd. Offers and leases name absolute times."
    wrong = {name: offset_s for name, offset_s in offsets.items() if abs(offset_s) > _MAX_OFFSET_S}
    for name, offset_s in wrong.items():
        yield failure(f"the clock is {abs(offset_s):.0f} s {'behind' if offset_s > 0 else 'ahead of'} {name}", remedy)
    if wrong:
        return
    if offsets:
        yield ok(f"the clock agrees with {' and '.join(offsets)}")
    elif synchronised is None:
        yield skipped("the kernel does not say whether a time service keeps the clock")
    elif synchronised:
        yield ok("a time service keeps the clock")
    else:
        yield warning("no time service keeps the clock", remedy)


def _is_synchronised() -> bool | None:
    """Return whether the kernel's clock is kept by a time service; None if it does not say."""
    try:
        state: int = ctypes.CDLL(None).ntp_adjtime(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR
