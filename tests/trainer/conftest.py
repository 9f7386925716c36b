from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest
import torch

from support.trainer import Bridge, Hub, write_digit_slices, write_tiny_model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def hub(model_folder: Path, tmp_path: Path) -> Hub:
    return Hub(model_folder, write_digit_slices(tmp_path))


class OpenBridge(Protocol):
    def __call__(self, hub: Hub) -> Bridge: ...


@pytest.fixture
def open_bridge(tmp_path: Path) -> Iterator[OpenBridge]:
    """Opens bridges, one for each trainer of the job."""
    bridges: list[Bridge] = []
    with ExitStack() as stack:

        def opened(hub: Hub) -> Bridge:
            bridge = Bridge(hub, tmp_path / f"hypha-{len(bridges)}", len(bridges), bridges)
            bridges.append(bridge)
            stack.callback(bridge.close)
            return bridge

        yield opened
