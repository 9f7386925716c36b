"""Run benchmarks and print their tables: `python -m benchmarks [--small] [NAME ...]`."""

import argparse
import importlib
import os
import sys
import time
from datetime import UTC, datetime

from benchmarks.figures import table
from benchmarks.nodes import BenchmarkError, rust_binaries
from hypha_contracts.command_line import leaves

NAMES = (
    "fetch",
    "allocation",
    "outer_step",
    "parameter_server",
    "connector",
    "muxer",
    "telemetry",
    "status_page",
    "trainer",
)
ON_KUBERNETES = ("reconcile", "dispatch")
"""These benchmarks need `make tools` and take long, so they run only if named."""
ALL = (*NAMES, *ON_KUBERNETES)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="With HYPHA_BIN=DIR, the directory of hypha-gateway, hypha-data and hypha-worker, the Rust nodes "
        "run too.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"what to run (default: all but the last two): {', '.join(ALL)}"
    )
    parser.add_argument(
        "--small",
        action="store_true",
        help="only show that each benchmark works: a run takes seconds and does not judge promises",
    )
    arguments = parser.parse_args()
    names = arguments.names or NAMES
    if unknown := [name for name in names if name not in ALL]:
        parser.error(f"no benchmark is called {unknown[0]}; there are {', '.join(ALL)}")
    try:
        with_rust = "with" if rust_binaries() else "without (HYPHA_BIN is not set)"
        print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, {with_rust} the Rust nodes")
        for name in names:
            module = importlib.import_module(f"benchmarks.{name}")
            load, started = os.getloadavg()[0], time.monotonic()
            figures = module.run(module.SMALL if arguments.small else module.FULL)
            seconds = time.monotonic() - started
            print(f"\n## {name}\n\n{(module.__doc__ or '').strip()}\n")
            if arguments.small:
                print("This is a small run. Its sizes are smaller than described, so its figures mean nothing.\n")
            print(f"{table(figures, judged=not arguments.small)}\n")
            print(f"{seconds:.0f} s; load average before {load:.1f}, after {os.getloadavg()[0]:.1f}", flush=True)
    except* BenchmarkError as group:
        sys.exit("\n".join(f"benchmarks: {error}" for error in leaves(group)))


if __name__ == "__main__":
    main()
