"""Fixtures of all cases: the cluster, the installed operator, the network outside; and the table of results."""

import shutil
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path

import pytest

from e2e import installation, report, workers
from e2e.devnet import Devnet
from e2e.kube import Kube, KubeError, eventually
from e2e.report import Case
from e2e.settings import OUTPUT, ROOT, Settings, load
from e2e.tasks import Tasks
from e2e.workers import Namespaces, Worker

_CASES = pytest.StashKey[list[Case]]()
_KUBE = pytest.StashKey[Kube]()
_NAMESPACES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_CASES] = []
    config.stash[_NAMESPACES] = [installation.NAMESPACE]
    config.addinivalue_line("markers", "case: a case of its own in the table")
    config.addinivalue_line("markers", "long: takes minutes, or needs a program that takes minutes to build")


@pytest.fixture(scope="session")
def settings() -> Settings:
    return load()


@pytest.fixture(scope="session")
def kube(settings: Settings, pytestconfig: pytest.Config) -> Kube:
    """The running cluster."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    cluster = pytestconfig.stash[_KUBE] = installation.cluster(settings)
    return cluster


@pytest.fixture(scope="session")
def operator(kube: Kube, settings: Settings) -> None:
    """The release of the chart."""
    installation.install(kube, settings)


@pytest.fixture(scope="session")
def devnet(kube: Kube, settings: Settings) -> Iterator[Devnet]:
    """The network outside the cluster."""
    network = Devnet(OUTPUT / "devnet", installation.host(settings))
    try:
        network.start()
        yield network
    finally:
        network.stop()


@pytest.fixture(scope="session")
def tasks(devnet: Devnet) -> Iterator[Tasks]:
    """A scheduler whose tasks contain their programs."""
    scheduler = Tasks(devnet.identity("e2e"), devnet.gateway, devnet.host)
    scheduler.start()
    yield scheduler
    scheduler.stop()


@pytest.fixture(scope="session")
def namespaces(kube: Kube, operator: None, settings: Settings, pytestconfig: pytest.Config) -> Iterator[Namespaces]:
    """Creates namespaces that enforce `restricted`, and removes them at the end."""
    made: list[str] = []

    def make(name: str) -> str:
        if name not in made:
            _remove(kube, [name])
            made.append(name)
            pytestconfig.stash[_NAMESPACES].append(name)
            kube.apply(workers.namespace(name))
        return name

    yield make
    if not settings.keep:
        _remove(kube, made)


def _remove(kube: Kube, names: list[str]) -> None:
    """Remove namespaces, HyphaWorkers first, because the operator has to finish their deletion."""
    for name in names:
        if kube.get("namespaces", None, name) is not None:
            for item in kube.items("hyphaworkers", name):
                kube.delete("hyphaworkers", name, item["metadata"]["name"])
            kube.delete("namespaces", None, name)
    for name in names:
        eventually(f"namespace {name} is gone", partial(_gone, kube, name), 180)


def _gone(kube: Kube, name: str) -> bool:
    return kube.get("namespaces", None, name) is None


@pytest.fixture(scope="session")
def farm(kube: Kube, devnet: Devnet, namespaces: Namespaces) -> list[Worker]:
    """Two workers that train and one that aggregates."""
    namespace = namespaces("hypha-e2e-training")
    made = [
        Worker(kube, devnet, namespace, name, workers.trainer_spec(devnet, name)) for name in ("trainer-1", "trainer-2")
    ]
    made.append(Worker(kube, devnet, namespace, "server", workers.server_spec(devnet, "server")))
    for worker in made:
        worker.apply()
    return [worker.ready() for worker in made]


@pytest.fixture(scope="module")
def worker(
    kube: Kube, devnet: Devnet, namespaces: Namespaces, settings: Settings, request: pytest.FixtureRequest
) -> Iterator[Worker]:
    """The module's worker that runs programs. The module's `EXECUTORS`, if any, are further executors."""
    name = request.module.__name__.rpartition("_")[2]
    executors = getattr(request.module, "EXECUTORS", {})
    spec = workers.program_spec(
        devnet, "programs", installation.image(kube, "HYPHA_PARAMETER_SERVER_IMAGE"), **executors
    )
    made = Worker(kube, devnet, namespaces(f"hypha-e2e-{name}"), "programs", spec).apply().ready()
    yield made
    if not settings.keep:  # a small cluster has no capacity for all of them
        made.delete()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    result = yield
    if result.when == "call" or not result.passed:
        reason = str(call.excinfo.value) if result.skipped and call.excinfo else ""
        when = "afterwards: " if result.when == "teardown" else ""
        case = Case(when + report.sentence(item.name), result.outcome, result.duration, reason)
        item.config.stash[_CASES].append(case)
    namespaces = item.config.stash[_NAMESPACES]
    if result.failed and (cluster := item.config.stash.get(_KUBE, None)):
        name = "".join(letter if letter.isalnum() else "-" for letter in item.name)
        try:
            report.dump(cluster, OUTPUT / "failures" / name, namespaces)
        except KubeError as error:
            result.sections.append(("dump", f"the cluster does not answer: {error}"))
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    cases = config.stash[_CASES]
    if cases:
        terminalreporter.section("cases")
        for line in report.table(cases):
            terminalreporter.write_line(line)
        if any(case.outcome == "failed" for case in cases):
            terminalreporter.write_line(f"What the failed cases left: {Path(OUTPUT / 'failures').relative_to(ROOT)}")
