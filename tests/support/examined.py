"""Workers for the doctor to examine, and its checks one by one."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from hypha_contracts.findings import Finding, Mark
from hypha_worker.config_file import ConfigError, Loaded, load
from hypha_worker.doctor.checks import CHECKS
from hypha_worker.doctor.run import run
from hypha_worker.doctor.worker import Worker
from support.certs import Pki

CLOSED = "/ip4/127.0.0.1/tcp/1"
"""An address at which nothing listens."""


def write_config(
    directory: Path,
    pki: Pki,
    *,
    executor: Mapping[str, Any] | None = None,
    resources: Mapping[str, float] | None = None,
    **values: Any,
) -> Path:
    """Write the files of a worker on loopback. `executor` and `resources` change these tables; None removes a key."""
    files = pki.files("worker", directory)
    top = {
        "cert_pem": files.cert.name,
        "key_pem": files.key.name,
        "trust_pem": files.trust.name,
        "gateway_addresses": [CLOSED],
        "listen_addresses": ["/ip4/127.0.0.1/tcp/0"],
        "exclude_cidr": [],
        "relay_circuit": False,
        "work_dir": "work",
    }
    program = {"class": "train", "name": "test", "runtime": "process", "cmd": sys.executable, "args": ["{SOCKET_PATH}"]}
    tables = {
        "[resources]": {"cpu": 0.5, "memory": 0.1, "storage": 0.1} | dict(resources or {}),
        "[[executors]]": program | dict(executor or {}),
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in (top | values).items() if not isinstance(value, dict)]
    tables |= {f"[{key}]": value for key, value in values.items() if isinstance(value, dict)}
    for header, table in tables.items():
        lines += [header]
        for key, value in ((key, value) for key, value in table.items() if value is not None):
            pairs = [f"{name} = {json.dumps(text)}" for name, text in value.items()] if isinstance(value, dict) else []
            lines.append(f"{key} = " + (f"{{ {', '.join(pairs)} }}" if pairs else json.dumps(value)))
    path = directory / "worker.toml"
    path.write_text("\n".join(lines))
    return path


async def examine(path: Path, check: str, environ: Mapping[str, str] | None = None) -> tuple[Finding, ...]:
    """Return what one check of the doctor finds about the worker of a configuration file."""
    loaded: Loaded | ConfigError
    try:
        loaded = load(path, {})
    except ConfigError as error:
        loaded = error
    worker = Worker(path, loaded, os.environ if environ is None else environ)
    [result] = await run(worker, [c for c in CHECKS if c.id == check], lambda _: None)
    return tuple(result.findings)


async def problem(path: Path, check: str, environ: Mapping[str, str] | None = None) -> Finding:
    """Return the only warning or failure that a check finds."""
    findings = await examine(path, check, environ)
    bad = [finding for finding in findings if finding.mark in (Mark.WARNING, Mark.FAILURE)]
    assert len(bad) == 1, findings
    assert bad[0].remedy.endswith((".", "`")), "every problem has a remedy"
    return bad[0]


@contextmanager
def http_server(status: int = 200, **headers: str) -> Iterator[str]:
    """Run a server that answers every request with a status; yields its address. `Date` may be among the headers."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.send_response_only(status)
            for name, text in ({"Date": self.date_time_string()} | headers).items():
                self.send_header(name, text)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = do_HEAD = answer  # noqa: N815 - names of the base class

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
