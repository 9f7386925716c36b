"""The cluster from the command line."""

import argparse
import sys
import time
from pathlib import Path

from e2e.cluster.cluster import Cluster
from e2e.cluster.processes import StartError
from e2e.cluster.tools import DIRECTORY, ToolError


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m e2e.cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start the cluster, or repair it")
    commands.add_parser("down", help="remove the cluster and all its traces")
    commands.add_parser("status", help="show what runs; fails unless all is well")
    commands.add_parser("env", help="print the variables of a shell that uses it, for eval")
    load = commands.add_parser("load", help="load the images of an archive")
    load.add_argument("archive", type=Path, help="an OCI or Docker archive")
    for name in ("start", "stop"):
        command = commands.add_parser(name, help=f"{name} one program, to try a fault")
        command.add_argument("program", help="kube-apiserver, kubelet, ...; see status")
    arguments = parser.parse_args()
    try:
        return _do(arguments)
    except (ToolError, StartError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _do(arguments: argparse.Namespace) -> int:
    cluster = Cluster()
    match arguments.command:
        case "up":
            started = time.monotonic()
            cluster.up()
            print(f"the cluster is up after {time.monotonic() - started:.0f} s: export KUBECONFIG={cluster.kubeconfig}")
        case "down":
            cluster.down()
        case "status":
            states = cluster.status() or {"the cluster": "not there: make cluster"}
            for name, state in states.items():
                print(f"{name:<24} {state}")
            return 0 if all(state.startswith("well") for state in states.values()) else 1
        case "env":
            print(f"export KUBECONFIG={cluster.kubeconfig}\nexport PATH={DIRECTORY / 'bin'}:$PATH")
        case "load":
            print(cluster.load(arguments.archive), end="")
        case "start" | "stop":
            if arguments.program not in cluster.processes.programs:
                raise ToolError(
                    f"no such program: {arguments.program}; there are {', '.join(cluster.processes.programs)}"
                )
            getattr(cluster, arguments.command)(arguments.program)
    return 0


if __name__ == "__main__":
    sys.exit(main())
