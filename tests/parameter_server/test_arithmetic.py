"""Averaging and the outer step, against straightforward float64 arithmetic and against torch."""

import os

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from hypha_executor.safetensors import lay_out, open_header, read_header
from hypha_parameter_server import arithmetic, halves
from hypha_parameter_server.arithmetic import DTYPES, Nesterov, PerKind, Source, check, outer_step, spans
from hypha_parameter_server.errors import Refused

EPSILON = {"F64": 1e-14, "F32": 1e-6, "F16": 2e-3, "BF16": 1e-2}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of a few elements, so that small tensors have several."""
    monkeypatch.setattr(arithmetic, "CHUNK_ELEMENTS", 7)


def write(path, tensors, order=None, metadata=None):
    """Writes named arrays, laid out in the given order."""
    names = order or list(tensors)
    codes = {dtype: code for code, dtype in DTYPES.items()} | {np.dtype(np.uint8): "U8", np.dtype(np.int8): "I8"}
    head, _ = lay_out([(name, codes[tensors[name].dtype], tensors[name].shape) for name in names], metadata or {})
    path.write_bytes(head + b"".join(tensors[name].tobytes() for name in names))
    return path


def read(path):
    content = path.read_bytes()
    return {
        name: np.frombuffer(content, DTYPES[tensor.dtype], tensor.elements, tensor.offset).reshape(tensor.shape)
        for name, tensor in read_header(path).tensors.items()
    }


def step(directory, files, shares, optimizer, first):
    momentum = directory / "momentum"
    sources = [
        Source(path, read_header(path), PerKind(share, share, share)) for path, share in zip(files, shares, strict=True)
    ]
    outer_step(
        sources,
        optimizer,
        None if first else (momentum, read_header(momentum)),
        (directory / "momentum.new", {}),
        (directory / "update", {}),
    )
    (directory / "momentum.new").rename(momentum)
    return read(directory / "update")


def check_file(path):
    descriptor, header = open_header(path)
    try:
        return check(descriptor, header).weights
    finally:
        os.close(descriptor)


@st.composite
def rounds_of_files(draw):
    """Rounds of pseudo-gradients (name to array for each worker), each worker with a tensor order of its own."""
    layout = draw(
        st.dictionaries(
            st.text(min_size=1, max_size=3).filter(lambda name: name != "__metadata__"),
            st.tuples(st.sampled_from(sorted(EPSILON)), st.lists(st.integers(0, 6), max_size=3)),
            min_size=1,
            max_size=5,
        )
    )
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    workers, rounds = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    orders = [draw(st.permutations(sorted(layout))) for _ in range(workers)]
    files = [
        [
            {name: random.normal(0, 3, shape).astype(DTYPES[dtype]) for name, (dtype, shape) in layout.items()}
            for _ in range(workers)
        ]
        for _ in range(rounds)
    ]
    samples = [draw(st.integers(1, 1000)) for _ in range(workers)]
    return layout, orders, files, [count / sum(samples) for count in samples]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds_of_files(), st.floats(0.01, 2), st.floats(0, 0.99))
def test_updates_are_those_of_plain_float64_arithmetic(tmp_path_factory, case, learning_rate, momentum):
    layout, orders, rounds, shares = case
    directory = tmp_path_factory.mktemp("step")
    velocity = dict.fromkeys(layout, 0.0)
    for number, workers in enumerate(rounds):
        files = [
            write(directory / f"worker-{worker}", tensors, order)
            for worker, (tensors, order) in enumerate(zip(workers, orders, strict=True))
        ]
        found = step(directory, files, shares, Nesterov(learning_rate, momentum), first=number == 0)
        assert {name: (array.dtype, array.shape) for name, array in found.items()} == {
            name: (DTYPES[dtype], tuple(shape)) for name, (dtype, shape) in layout.items()
        }
        for name, (dtype, _) in layout.items():
            wide = [tensors[name].astype(np.float64) * share for tensors, share in zip(workers, shares, strict=True)]
            mean = sum(wide)
            velocity[name] = momentum * velocity[name] + mean
            expected = learning_rate * (momentum * velocity[name] + mean)
            tolerance = EPSILON[dtype] * (1 + 30 * learning_rate)
            np.testing.assert_allclose(found[name].astype(np.float64), expected, rtol=EPSILON[dtype], atol=tolerance)


def test_weights_follow_the_trajectory_of_torch_sgd_with_nesterov(tmp_path):
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 50))
    optimizer = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    weights = parameter.detach().numpy().copy()
    random = np.random.default_rng(1)
    for number in range(6):
        gradients = [random.standard_normal(50, dtype=np.float32) for _ in range(3)]
        files = [write(tmp_path / f"worker-{index}", {"w": gradient}) for index, gradient in enumerate(gradients)]
        weights = weights + step(tmp_path, files, [1 / 3] * 3, Nesterov(0.7, 0.9), first=number == 0)["w"]
        # A pseudo-gradient points where the weights went, a gradient the other way.
        parameter.grad = -torch.from_numpy(np.mean(gradients, axis=0))
        optimizer.step()
        np.testing.assert_allclose(weights, parameter.detach().numpy(), atol=1e-5)


def test_integers_are_averaged_and_rounded_without_momentum_and_learning_rate(tmp_path):
    for number in range(3):
        files = [
            write(tmp_path / name, {"w": np.ones(2, np.float32), "n": np.array([count, -count, 100], np.int64)})
            for name, count in [("a", 10), ("b", 15)]
        ]
        update = step(tmp_path, files, [0.5, 0.5], Nesterov(0.7, 0.9), first=number == 0)["n"]
        assert update.dtype == np.int64
        assert update.tolist() == [12, -12, 100]


def test_bytes_that_went_down_are_averaged_as_signed_numbers(tmp_path):
    files = [
        write(
            tmp_path / name, {"w": np.ones(2, np.float32), "left": np.array([start - count], np.int16).astype(np.uint8)}
        )
        for name, start, count in [("a", 0, 2), ("b", 0, 4)]
    ]
    change = step(tmp_path, files, [0.5, 0.5], Nesterov(0.7, 0.9), first=True)["left"]
    assert (np.array([10], np.uint8) + change.view(np.uint8)).tolist() == [7]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32]), st.floats(0.01, 2), st.floats(0, 0.99))
def test_variances_stay_between_those_of_the_trainers(tmp_path_factory, data, kind, learning_rate, momentum):
    directory = tmp_path_factory.mktemp("variances")
    workers = data.draw(st.integers(1, 5))
    samples = data.draw(st.lists(st.integers(1, 1000), min_size=workers, max_size=workers))
    positive = st.lists(st.floats(0, 1000, width=16), min_size=9, max_size=9)
    variance = np.array(data.draw(positive), kind)
    for number in range(3):
        local = [np.array(data.draw(positive), kind) for _ in samples]
        files = [
            write(directory / f"worker-{index}", {"w": np.ones(3, kind), "bn.running_var": own - variance})
            for index, own in enumerate(local)
        ]
        shares = [count / sum(samples) for count in samples]
        update = step(directory, files, shares, Nesterov(learning_rate, momentum), first=number == 0)
        variance = variance + update["bn.running_var"]
        assert variance.min() >= 0
        rounding = 2000 * float(ml_dtypes.finfo(kind).eps)
        assert (variance.astype(float) <= np.max(local, axis=0).astype(float) + rounding).all()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_results_beyond_the_range_are_clipped(tmp_path, dtype):
    kind = DTYPES[dtype]
    largest = ml_dtypes.finfo(kind).max
    files = [write(tmp_path / f"worker-{index}", {"w": np.full(20, largest, kind)}) for index in range(3)]
    for number in range(4):
        update = step(tmp_path, files, [1 / 3] * 3, Nesterov(2.0, 0.9), first=number == 0)["w"].astype(np.float64)
        assert np.isfinite(update).all()
        assert (update >= 0.99 * float(largest)).all()
    assert np.isfinite(read(tmp_path / "momentum")["w"]).all()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 6, 7, 19])
def test_nan_and_infinity_are_found_wherever_they_are(tmp_path, dtype, value, place):
    tensors = {name: np.ones(20, DTYPES[dtype]) for name in ("first", "second", "third")}
    tensors["second"][place] = value
    with pytest.raises(Refused, match="in tensor 'second'"):
        check_file(write(tmp_path / "file", tensors))


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_large_finite_numbers_are_accepted(tmp_path, dtype):
    largest = np.finfo(DTYPES[dtype]).max
    file = write(tmp_path / "file", {"w": np.full(4, largest / 4, DTYPES[dtype])})
    assert check_file(file) == pytest.approx(float(largest) / 2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds_of_files())
def test_the_length_is_the_euclidean_norm_of_all_tensors(tmp_path_factory, case):
    _, orders, rounds, _ = case
    file = write(tmp_path_factory.mktemp("length") / "file", rounds[0][0], orders[0])
    flat = np.concatenate([array.astype(np.float64).ravel() for array in rounds[0][0].values()])
    assert check_file(file) == pytest.approx(float(np.linalg.norm(flat)), rel=1e-5)


def test_every_half_widens_as_in_numpy():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    wide = np.empty(1 << 16, np.float32)
    halves.widen(every, wide)
    assert np.array_equal(wide, every.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("kept", ["normal", "finite"])
def test_halves_widen_as_in_numpy_however_many_are_below_the_smallest_normal_one(kept):
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    chosen = every[np.isfinite(every) & ((np.abs(every) >= 2.0**-14) | (kept == "finite"))]
    chosen = np.append(np.tile(chosen, 2 if kept == "normal" else 1), np.float16([0.0, -0.0, 6e-8, -5e-5]))
    wide = np.empty(len(chosen), np.float32)
    halves.widen(chosen, wide)
    assert np.array_equal(wide.view(np.uint32), chosen.astype(np.float32).view(np.uint32))


def narrowed(values):
    target, scratch = np.empty(len(values), np.float16), np.empty((2, len(values)), np.float32)
    halves.narrow(values, target, (scratch[0], scratch[1]))
    return target.view(np.uint16)


def test_numbers_around_every_half_narrow_as_in_numpy():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = np.sort(every[np.isfinite(every)].astype(np.float32))
    ties = (finite[1:] + finite[:-1]) / 2
    exact = np.concatenate([finite, -finite, ties])
    around = [np.nextafter(exact, limit).astype(np.float32) for limit in (np.float32(-70000), np.float32(70000))]
    tiny = np.array([1e-45, -1e-45, 1e-38, -1e-39, 2.0**-25, -(2.0**-25), 2.0**-26], np.float32)
    values = np.concatenate([exact, *around, tiny])
    values = values[np.abs(values) <= 65504]
    assert np.array_equal(narrowed(values)[values != 0], values.astype(np.float16).view(np.uint16)[values != 0])
    assert np.array_equal(narrowed(np.zeros(3, np.float32)), np.zeros(3, np.uint16))


@settings(deadline=None)
@given(st.lists(st.floats(-65504, 65504, width=32), min_size=1))
def test_numbers_narrow_as_in_torch(numbers):
    values = np.array(numbers, np.float32)
    expected = torch.from_numpy(values).to(torch.float16).numpy()
    assert np.array_equal(narrowed(values), expected.view(np.uint16))


def test_adjacent_tensors_become_one_span(tmp_path):
    tensors = {f"layer.{number:04}": np.ones(3, np.float32) for number in range(1000)}
    files = [read_header(write(tmp_path / name, tensors)).tensors for name in "ab"]
    assert [(span.count, len(span.offsets)) for span in spans(files)] == [(3000, 2)]


def test_tensors_in_another_order_are_matched_by_name(tmp_path):
    tensors = {"a": np.full(3, 1, np.float32), "b": np.full(5, 2, np.float32)}
    files = [write(tmp_path / "x", tensors), write(tmp_path / "y", tensors, order=["b", "a"])]
    update = step(tmp_path, files, [0.5, 0.5], Nesterov(1.0, 0.0), first=True)
    assert update["a"].tolist() == [1] * 3
    assert update["b"].tolist() == [2] * 5


def test_a_file_truncated_after_its_check_is_an_error_not_a_crash(tmp_path):
    file = write(tmp_path / "file", {"w": np.ones(100, np.float32)})
    source = Source(file, read_header(file), PerKind(1.0, 1.0, 1.0))
    os.truncate(file, file.stat().st_size - 200)
    with pytest.raises(OSError, match="truncated"):
        outer_step([source], Nesterov(1.0, 0.0), None, (tmp_path / "m", {}), (tmp_path / "u", {}))


def test_each_kind_has_a_length_and_a_factor_of_its_own(tmp_path):
    tensors = {
        "bn.running_var": np.full(4, 50, np.float32),
        "w": np.full(4, 2, np.float32),
        "steps": np.array([500], np.int64),
    }
    file = write(tmp_path / "file", tensors)
    descriptor, header = open_header(file)
    assert check(descriptor, header) == PerKind(4.0, 100.0, 500.0)
    os.close(descriptor)
    source = Source(file, header, PerKind(0.5, 0.2, 0.1))
    outer_step([source], Nesterov(1.0, 0.0), None, (tmp_path / "m", {}), (tmp_path / "u", {}))
    found = read(tmp_path / "u")
    assert (found["w"].tolist(), found["bn.running_var"].tolist(), found["steps"].tolist()) == ([1] * 4, [10] * 4, [50])
    assert read(tmp_path / "m").keys() == {"w"}


def test_a_file_without_weights_is_refused(tmp_path):
    with pytest.raises(Refused, match="has no weights"):
        check_file(write(tmp_path / "file", {"n": np.ones(3, np.int64), "bn.running_mean": np.ones(3, np.float32)}))


def test_a_tensor_that_cannot_be_averaged_is_refused(tmp_path):
    path = tmp_path / "file"
    save_file({"w": np.ones(3), "mask": np.ones(3, bool)}, path)
    with pytest.raises(Refused, match="'mask' of dtype BOOL"):
        check_file(path)


def test_a_length_beyond_float64_is_refused(tmp_path):
    with pytest.raises(Refused, match="longer than a float64"):
        check_file(write(tmp_path / "file", {"w": np.full(4, np.finfo(np.float64).max)}))


EXTREMES = {
    "F32": [3.4028234663852886e38, -3.4028234663852886e38, 1.2e-38, 1e-45, -1e-45, 0.0, 1.0],
    "BF16": [3.3895313892515355e38, -3.3895313892515355e38, 1e-40, 0.0, 1.0],
    "F16": [65504.0, -65504.0, 6e-8, 0.0, 1.0],
    "F64": [1.7976931348623157e308, -1.7976931348623157e308, 5e-324, 0.0, 1.0],
    "I64": [2**63 - 1, -(2**63), 0, 1],
    "U8": [-128, 127, 0, 1],
}


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(EXTREMES)),
    st.integers(1, 10),
    st.floats(0, 1, exclude_max=True) | st.just(0.0),
    st.floats(0, 1.7e308, exclude_min=True),
    st.data(),
)
def test_finite_gradients_never_lead_to_infinities_or_nan(
    tmp_path_factory, dtype, members, momentum, learning_rate, data
):
    directory = tmp_path_factory.mktemp("extremes")
    values = st.lists(st.sampled_from(EXTREMES[dtype]), min_size=9, max_size=9)
    samples = data.draw(st.lists(st.integers(1, 2**53), min_size=members, max_size=members))
    for number in range(3):
        files = [
            write(directory / f"worker-{member}", {"v": np.ones(1), "w": np.array(data.draw(values), DTYPES[dtype])})
            for member in range(members)
        ]
        shares = [count / sum(samples) for count in samples]
        update = step(directory, files, shares, Nesterov(learning_rate, momentum), first=number == 0)["w"]
        assert np.isfinite(update.astype(np.float64)).all()
        assert all(np.isfinite(array).all() for array in read(directory / "momentum").values())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_ten_members_at_the_limit_of_float32_leave_the_momentum_finite(tmp_path, momentum):
    largest = np.finfo(np.float32).max
    files = [write(tmp_path / f"worker-{index}", {"w": np.full(20, largest)}) for index in range(10)]
    for number in range(3):
        update = step(tmp_path, files, [0.1] * 10, Nesterov(0.7, momentum), first=number == 0)["w"]
        assert np.isfinite(update).all()
        assert np.isfinite(read(tmp_path / "momentum")["w"]).all()
