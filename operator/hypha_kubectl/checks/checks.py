"""The list of all checks. `docs/kubectl.md` shows it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from hypha_contracts.findings import Finding, Result, Subject, failure, skipped
from hypha_contracts.kubernetes_errors import ApiError
from hypha_kubectl.access.api import at_once
from hypha_kubectl.checks import environment, installation
from hypha_kubectl.checks.facts import Cluster, Unknown


@dataclass(frozen=True)
class Check(Subject):
    """Something about a cluster that can be right or wrong.

    Attributes:
        before: whether it is made before an installation, `after` whether it is made after one.
    """

    run: Callable[[Cluster], Iterable[Finding]]
    before: bool = True
    after: bool = True


CHECKS: Final[Sequence[Check]] = (
    Check(
        "cluster.version",
        "Cluster",
        "Does the API server answer, and is it new enough?",
        environment.version,
    ),
    Check("cluster.nodes", "Cluster", "Are nodes ready for pods?", environment.nodes),
    Check("cluster.gpus", "Cluster", "Do nodes have the GPUs that workers offer?", environment.gpus),
    Check(
        "cluster.tokens",
        "Cluster",
        "Does the API server publish the keys by which controllers verify the tokens of bridges?",
        environment.tokens,
    ),
    Check(
        "cluster.addons",
        "Cluster",
        "Do the storage classes, sandboxes, queues and issuers exist that workers name?",
        environment.addons,
        before=False,
    ),
    Check(
        "rights.cluster",
        "Rights",
        "May you install the definitions, and an operator of the complete cluster?",
        environment.cluster_rights,
        after=False,
    ),
    Check(
        "rights.namespace",
        "Rights",
        "May you install an operator in the namespace?",
        environment.namespace_rights,
        after=False,
    ),
    Check(
        "namespace.pod_security",
        "Namespace",
        "Do the namespaces of workers exist, and which Pod Security level do they enforce?",
        environment.pod_security,
    ),
    Check(
        "installation.definitions",
        "Installation",
        "Does the cluster serve HyphaWorkers and HyphaJobs, in the form that this version knows?",
        installation.definitions,
        before=False,
    ),
    Check(
        "installation.operator",
        "Installation",
        "Are operators ready, in the version of this program?",
        installation.operators,
        before=False,
    ),
    Check(
        "installation.leader",
        "Installation",
        "Does a replica of each operator hold its Lease?",
        installation.leaders,
        before=False,
    ),
    Check("workers.state", "Workers", "Does each worker make offers, and why not?", installation.workers, before=False),
    Check(
        "workers.jobs", "Workers", "Which jobs do not start because of the cluster?", installation.jobs, before=False
    ),
)


def run(cluster: Cluster) -> list[Result]:
    """Make the checks before or after an installation, and return their results in order."""
    chosen = [check for check in CHECKS if (check.before if cluster.before else check.after)]
    return at_once(*(lambda check=check: Result(check, _findings(cluster, check)) for check in chosen))


def _findings(cluster: Cluster, check: Check) -> Sequence[Finding]:
    try:
        return tuple(check.run(cluster))
    except Unknown as reason:
        return (skipped(str(reason)),)
    except ApiError as error:
        if error.status in {0, HTTPStatus.UNAUTHORIZED}:
            raise  # every other check will fail for the same reason
        return (failure(f"the API server did not answer: {error}", "Try again."),)
    except Exception as error:  # a fault of ours must not hide what the other checks found
        return (failure(f"this check failed: {type(error).__name__}: {error}", "Report this as a fault."),)
