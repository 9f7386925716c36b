"""Checks, averages and the outer step, in chunks: each thread needs a few MiB of memory, whatever the model's size.

Chunks are read into reused buffers. Memory maps would be no faster. Their pages would count as this process's memory,
and a file that is truncated during a read would be a fatal signal instead of an error.
"""

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np

from hypha_executor.kinds import Kind, kind_of
from hypha_executor.safetensors import Header, Tensor, lay_out
from hypha_parameter_server import halves
from hypha_parameter_server.errors import Refused

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.int8),  # the change of a byte is signed: 254 is -2, because it wraps when a trainer adds it
}
"""NumPy's dtypes of all those that can be averaged."""

CHUNK_ELEMENTS: Final = 1 << 18
"""Smaller chunks would fit a core's cache, but then threads wait for Python's lock more often than they calculate."""
_WIDEST: Final = 8
_THREADS: Final = min(4, os.cpu_count() or 1)

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Span:
    """Elements of one dtype and kind, contiguous in each of several files; `offsets` are their first bytes there."""

    dtype: str
    kind: Kind
    count: int
    offsets: tuple[int, ...]

    @property
    def working(self) -> str:
        """The dtype for calculations with these elements."""
        return "F32" if self.kind == "weights" and self.dtype != "F64" else "F64"

    def at(self, index: int, first: int, dtype: str) -> int:
        """Return the offset of the element `first` in the file `index`, whose elements have this dtype."""
        return self.offsets[index] + first * DTYPES[dtype].itemsize


def spans(files: Sequence[Mapping[str, Tensor]]) -> Iterator[Span]:
    """Yield the first file's tensors, in its order. Tensors that are adjacent in every file become one span.

    A span has the first file's dtype. The other files may hold the same tensors in other dtypes.
    """
    pending: Span | None = None
    ends: tuple[int, ...] = ()
    for name, tensor in files[0].items():
        tensors = [file[name] for file in files]
        offsets = tuple(item.offset for item in tensors)
        kind = kind_of(name, tensor.dtype)
        if pending is not None and (pending.dtype, pending.kind) == (tensor.dtype, kind) and offsets == ends:
            pending = replace(pending, count=pending.count + tensor.elements)
        else:
            if pending is not None:
                yield pending
            pending = Span(tensor.dtype, kind, tensor.elements, offsets)
        ends = tuple(item.end for item in tensors)
    if pending is not None:
        yield pending


class _Buffers:
    """The memory of one thread."""

    def __init__(self) -> None:
        self._raw = np.empty(CHUNK_ELEMENTS * _WIDEST, np.uint8)
        self._working = [np.empty(CHUNK_ELEMENTS * _WIDEST, np.uint8) for _ in range(4)]

    def working(self, index: int, count: int, dtype: str) -> Array:
        """Return one of four arrays for calculations; its content is undefined."""
        return _as_array(self._working[index], count, dtype)

    def read(self, descriptor: int, offset: int, count: int, dtype: str) -> Array:
        """Read elements from a file; they are valid until the next read."""
        array = _as_array(self._raw, count, dtype)
        if os.preadv(descriptor, [array.view(np.uint8).data], offset) < array.nbytes:
            raise OSError(f"file descriptor {descriptor}: the file was truncated while it was read")
        return array

    def write(self, descriptor: int, offset: int, values: Array, dtype: str) -> None:
        """Write working values to a file, rounded to `dtype` and clipped to its range."""
        array = values if values.dtype == DTYPES[dtype] else _as_array(self._raw, len(values), dtype)
        if array.dtype == np.float16 and values.dtype == np.float32:
            halves.narrow(values, array, (self.working(1, len(values), "F32"), self.working(3, len(values), "F32")))
        elif array is not values:
            np.copyto(array, np.rint(values, out=values) if array.dtype.kind in "iu" else values, casting="unsafe")
        if os.pwrite(descriptor, array.view(np.uint8).data, offset) < array.nbytes:
            raise OSError("a write was incomplete; the disk may be full")


def _widen(raw: Array, target: Array) -> None:
    """Copy to a wider dtype."""
    if raw.dtype == np.float16 and target.dtype == np.float32:
        halves.widen(raw, target)
    else:
        np.copyto(target, raw, casting="unsafe")


def _as_array(buffer: Array, count: int, dtype: str) -> Array:
    kind = DTYPES[dtype]
    return buffer[: count * kind.itemsize].view(kind)


def _limits(dtype: str) -> tuple[float, float]:
    kind = DTYPES[dtype]
    if kind.kind in "iu":
        information = np.iinfo(kind)
        # The limits of 64-bit integers are not float64 numbers; the nearest smaller numbers are.
        return float(max(information.min, -(2**63))), float(min(information.max, 2**63 - 1024))
    limit = 65504.0 if dtype == "F16" else 3.3895313892515355e38 if dtype == "BF16" else float(np.finfo(kind).max)
    return -limit, limit


_LIMITS: Final = {dtype: _limits(dtype) for dtype in DTYPES}


def _each_chunk(parts: Iterable[Span], process: Callable[[Span, int, _Buffers], None]) -> None:
    """Call `process(span, first element, buffers)` for every chunk, from several threads."""
    chunks = ((part, first) for part in parts for first in range(0, part.count, CHUNK_ELEMENTS))
    lock = threading.Lock()

    def drain() -> None:
        buffers = _Buffers()
        with np.errstate(all="ignore"):
            while True:
                with lock:
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                process(*chunk, buffers)

    with ThreadPoolExecutor(_THREADS) as pool:
        for future in [pool.submit(drain) for _ in range(_THREADS)]:
            future.result()


def _read(buffers: _Buffers, part: Span, first: int, descriptor: int, index: int) -> Array:
    count = min(CHUNK_ELEMENTS, part.count - first)
    return buffers.read(descriptor, part.at(index, first, part.dtype), count, part.dtype)


class PerKind(NamedTuple):
    """A number for each kind of tensors. Counters and variances may be of a much larger scale than weights."""

    weights: float
    statistics: float
    integers: float

    def of(self, kind: Kind) -> float:
        """Return the number for tensors of this kind."""
        return {"weights": self.weights, "statistics": self.statistics, "integers": self.integers}[kind]


def check(descriptor: int, header: Header) -> PerKind:
    """Return the Euclidean lengths of a file's tensors, all tensors of a kind as one vector.

    Raises:
        Refused: There are no weights, a tensor cannot be averaged, an element is NaN or infinite, or a length is
            beyond a float64.
    """
    if all(kind_of(name, tensor.dtype) != "weights" for name, tensor in header.tensors.items()):
        raise Refused("has no weights, only statistics and counters")
    for name, tensor in header.tensors.items():
        if tensor.dtype not in DTYPES:
            raise Refused(
                f"has tensor {name[:100]!r} of dtype {tensor.dtype}; only {', '.join(DTYPES)} can be averaged"
            )
    lengths: dict[Kind, list[float]] = {"weights": [], "statistics": [], "integers": []}

    def add_length(part: Span, first: int, buffers: _Buffers) -> None:
        raw = _read(buffers, part, first, descriptor, 0)
        values = buffers.working(0, len(raw), part.working)
        if raw.dtype == values.dtype:
            values = raw
        else:
            _widen(raw, values)
        length = math.sqrt(float(np.dot(values, values)))
        if not math.isfinite(length):  # also if the squares of large numbers overflow
            unsound = np.flatnonzero(~np.isfinite(values))
            if len(unsound):
                offset = part.at(0, first + int(unsound[0]), part.dtype)
                raise Refused(f"has {values[unsound[0]]} in tensor {header.tensor_at(offset)[:100]!r}")
            largest = np.abs(values).max()
            scaled = values / largest
            length = float(largest) * math.sqrt(float(np.dot(scaled, scaled)))
        lengths[part.kind].append(length)

    _each_chunk(spans([header.tensors]), add_length)
    result = PerKind(**{kind: math.hypot(*found) for kind, found in lengths.items()})
    if not all(map(math.isfinite, result)):
        raise Refused("is longer than a float64 can say")
    return result


@dataclass(frozen=True)
class Source:
    """A file to average, and the factors of its tensors. All factors of a round and a kind sum to at most 1."""

    path: Path
    header: Header
    share: PerKind


@dataclass(frozen=True)
class Nesterov:
    """The outer optimiser: m = momentum * m + g, update = learning_rate * (momentum * m + g); at first m = g."""

    learning_rate: float
    momentum: float


def outer_step(
    sources: Sequence[Source],
    optimizer: Nesterov,
    momentum_in: tuple[Path, Header] | None,
    momentum_out: tuple[Path, Mapping[str, str]],
    update_out: tuple[Path, Mapping[str, str]],
) -> None:
    """Average checked files of one layout, advance the momentum, and write momentum and update (path, metadata).

    Only weights have momentum and a learning rate. The update of statistics and integers is their mean, with sums in
    float64. So no result is beyond the trainers' own, and a variance that they all keep positive never becomes
    negative. Sums of weights are in float32 (in float64 for float64). Results are clipped to the range of their dtype,
    so that finite inputs never lead to infinities or NaN.

    Raises:
        OSError: A file cannot be read or written.
    """
    tensors = sources[0].header.tensors
    weights = {name: tensor for name, tensor in tensors.items() if kind_of(name, tensor.dtype) == "weights"}
    others = {name: tensor for name, tensor in tensors.items() if name not in weights}
    update_head, update = lay_out([(name, item.dtype, item.shape) for name, item in tensors.items()], update_out[1])
    momentum_head, momentum = lay_out(
        [(name, "F64" if item.dtype == "F64" else "F32", item.shape) for name, item in weights.items()],
        momentum_out[1],
    )
    files: list[Mapping[str, Tensor]] = [*(source.header.tensors for source in sources[1:]), update]
    descriptors: list[int] = []
    try:
        descriptors.extend(os.open(source.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC) for source in sources)
        for path, head in ((update_out[0], update_head), (momentum_out[0], momentum_head)):
            descriptors.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
            os.pwrite(descriptors[-1], head, 0)
        old_momentum: list[Mapping[str, Tensor]] = []
        if momentum_in is not None:
            descriptors.append(os.open(momentum_in[0], os.O_RDONLY | os.O_CLOEXEC))
            old_momentum.append(momentum_in[1].tensors)
        step = _Step(descriptors, [source.share for source in sources], optimizer, momentum_in is not None)
        _each_chunk(spans([weights, *files, momentum, *old_momentum]), step.take)
        _each_chunk(spans([others, *files]) if others else (), step.average)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


class _Step:
    """The outer step of one chunk. Files: the sources, the update, the new momentum, the old one if there is one."""

    def __init__(
        self, descriptors: Sequence[int], shares: Sequence[PerKind], optimizer: Nesterov, has_momentum: bool
    ) -> None:
        self._descriptors = descriptors
        self._shares = shares
        self._optimizer = optimizer
        self._has_momentum = has_momentum

    def average(self, part: Span, first: int, buffers: _Buffers) -> None:
        """Write the mean of statistics or integers as their update."""
        mean = self._mean(part, first, buffers)
        np.clip(mean, *_LIMITS[part.dtype], out=mean)
        self._write(len(self._shares), (part, first), buffers, mean, part.dtype)

    def take(self, part: Span, first: int, buffers: _Buffers) -> None:
        """Advance the momentum of weights and write their update."""
        dtype = part.working
        mean = self._mean(part, first, buffers)
        momentum = buffers.working(2, len(mean), dtype)
        # A sum may overflow to an infinity. It never becomes NaN, because only finite numbers are added to it and only
        # positive ones multiply it, and it is clipped before it is written.
        mu = DTYPES[dtype].type(self._optimizer.momentum)
        update = len(self._shares)
        if self._has_momentum:
            old = buffers.read(self._descriptors[-1], part.at(update + 2, first, dtype), len(mean), dtype)
            np.multiply(old, mu, out=momentum)
            np.add(momentum, mean, out=momentum)
            np.clip(momentum, *_LIMITS[dtype], out=momentum)
        else:
            np.clip(mean, *_LIMITS[dtype], out=momentum)
        self._write(update + 1, (part, first), buffers, momentum, dtype)
        np.multiply(momentum, mu, out=momentum)
        np.add(momentum, mean, out=momentum)
        np.multiply(momentum, self._learning_rate(dtype), out=momentum)
        np.clip(momentum, *_LIMITS[part.dtype], out=momentum)
        self._write(update, (part, first), buffers, momentum, part.dtype)

    def _mean(self, part: Span, first: int, buffers: _Buffers) -> Array:
        count = min(CHUNK_ELEMENTS, part.count - first)
        mean, scratch = (buffers.working(index, count, part.working) for index in range(2))
        for index, share in enumerate(self._shares):
            raw = _read(buffers, part, first, self._descriptors[index], index)
            target = scratch if index else mean
            factor = target.dtype.type(share.of(part.kind))
            if raw.dtype == target.dtype:
                np.multiply(raw, factor, out=target)
            else:
                _widen(raw, target)
                np.multiply(target, factor, out=target)
            if index:
                np.add(mean, scratch, out=mean)
        return mean

    def _write(self, file: int, at: tuple[Span, int], buffers: _Buffers, values: Array, dtype: str) -> None:
        part, first = at
        buffers.write(self._descriptors[file], part.at(file, first, dtype), values, dtype)

    def _learning_rate(self, dtype: str) -> Any:
        """Return the learning rate in a dtype in which it might be zero or infinite."""
        kind = np.finfo(DTYPES[dtype])
        return DTYPES[dtype].type(np.clip(self._optimizer.learning_rate, kind.tiny, kind.max))
