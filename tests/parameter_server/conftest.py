import pytest

from support.parameter_server import Bridge, Process


@pytest.fixture
def bridge(tmp_path):
    served = Bridge(tmp_path)
    yield served
    served.close()


@pytest.fixture
def start(bridge):
    processes = []

    def _start(*options, **job):
        processes.append(Process(bridge, *options, **job))
        return processes[-1]

    yield _start
    for process in processes:
        process.kill()
