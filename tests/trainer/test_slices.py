from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from hypha_executor.bridge import Bridge as Client
from hypha_executor.errors import ExecutorError, JobError
from hypha_trainer.processes import Processes
from hypha_trainer.slices import Batches, Tensors, cut, fetch_slices, read_slice
from support.trainer import Hub

from .conftest import OpenBridge


def a_slice(first: int, size: int, width: int = 2) -> Tensors:
    labels = torch.arange(first, first + size)
    return {"x": labels.float().unsqueeze(1).expand(size, width), "labels": labels}


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8), batch_size=st.integers(1, 9))
def test_batches_hold_every_sample_once_in_order(sizes: list[int], batch_size: int) -> None:
    firsts = [sum(sizes[:index]) for index in range(len(sizes))]
    batches = list(cut((a_slice(first, size) for first, size in zip(firsts, sizes, strict=True)), batch_size))
    assert all(len(batch["labels"]) == batch_size for batch in batches)
    seen = torch.cat([batch["labels"] for batch in batches]) if batches else torch.tensor([], dtype=torch.int64)
    assert seen.tolist() == list(range(sum(sizes) // batch_size * batch_size))
    assert all(torch.equal(batch["x"][:, 0], batch["labels"].float()) for batch in batches)


def test_slices_of_different_shapes_do_not_mix() -> None:
    batches = list(cut(iter([a_slice(0, 5, width=2), a_slice(5, 8, width=3)]), 4))
    assert [tuple(batch["x"].shape) for batch in batches] == [(4, 2), (1, 2), (4, 3), (4, 3)]


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"x": torch.ones(3, 2)}, r"no tensors \['labels'\], only \['x'\]"),
        ({"x": torch.ones(3, 2), "labels": torch.ones(4)}, r"same number of samples.*'x': 3, 'labels': 4"),
        ({"x": torch.ones(0, 2), "labels": torch.ones(0)}, "at least one"),
        ({"x": torch.ones(3, 2), "labels": torch.tensor(1)}, "same number of samples"),
    ],
)
def test_a_slice_that_does_not_fit_the_job_is_refused(tmp_path: Path, tensors: Tensors, says: str) -> None:
    save_file(tensors, tmp_path / "slice")
    with pytest.raises(JobError, match=says):
        read_slice(tmp_path / "slice", ("x", "labels"))


def test_a_truncated_slice_is_refused(tmp_path: Path) -> None:
    save_file(a_slice(0, 4) | {"x": torch.ones(4, 2)}, tmp_path / "slice")
    (tmp_path / "slice").write_bytes((tmp_path / "slice").read_bytes()[:-3])
    with pytest.raises(ExecutorError, match="not a complete SafeTensors file"):
        read_slice(tmp_path / "slice", ("x",))


def test_an_optional_tensor_is_read_if_the_slice_has_it(tmp_path: Path) -> None:
    save_file({"image": torch.ones(4, 2), "labels": torch.ones(4)}, tmp_path / "slice")
    assert set(read_slice(tmp_path / "slice", ("image",), ("pixel_values", "labels"))) == {"image", "labels"}


def batches_of(fetched: Iterator[Path], batch_size: int = 16) -> Batches:
    return Batches(
        fetched,
        required=("pixel_values", "labels"),
        optional=(),
        prepare=lambda rows: rows,
        batch_size=batch_size,
        processes=Processes(),
        device=torch.device("cpu"),
    )


def test_a_slice_stays_readable_when_the_bridge_reuses_its_name(hub: Hub, open_bridge: OpenBridge) -> None:
    hub.slices = hub.slices[:2]
    for path in hub.slices[1:]:  # both slices arrive as artifacts/slice-0000.safetensors
        path.rename(hub.slices[0].parent / "other")
        (hub.slices[0].parent / "again").mkdir()
        hub.slices[1] = (hub.slices[0].parent / "other").rename(hub.slices[0].parent / "again" / hub.slices[0].name)
    expected = [read_slice(path, ("labels",))["labels"] for path in hub.slices]
    bridge = open_bridge(hub)
    batches = batches_of(fetch_slices(Client(bridge.socket, bridge.work_dir), {"type": "scheduler"}), batch_size=20)
    for number in range(6):
        assert torch.equal(batches.next().inputs["labels"], expected[number % 2])


def test_slices_are_fetched_ahead_within_bounds_and_deleted_once_mapped(hub: Hub, open_bridge: OpenBridge) -> None:
    bridge = open_bridge(hub)
    batches = batches_of(fetch_slices(Client(bridge.socket, bridge.work_dir), {"type": "scheduler"}), batch_size=20)
    for _ in range(10):
        batches.next()
    # Taken 10; beside them at most: one being cut, two batches ready, one slice waiting, one being put.
    assert hub.fetched <= 10 + 5
    assert len(list((bridge.work_dir / "artifacts").iterdir())) <= 3


def test_an_error_while_reading_ahead_is_raised_in_the_training(tmp_path: Path) -> None:
    def failing() -> Iterator[Path]:
        raise JobError("no data")
        yield tmp_path

    with pytest.raises(JobError, match="no data"):
        batches_of(failing()).next()


def test_the_rows_of_a_batch_go_to_exactly_one_process_each() -> None:
    for ranks in (1, 2, 3, 5):
        for samples in range(ranks, 20):
            processes = Processes()
            processes.data_ranks = ranks
            shares = []
            for rank in range(ranks):
                processes.data_rank = rank
                shares.append(range(*processes.rows(samples)))
            assert [row for share in shares for row in share] == list(range(samples))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
