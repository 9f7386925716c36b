"""A dataset for `examples/inference.py`, which predicts the sum of each sample, and its predictions."""

from array import array
from pathlib import Path

from hypha_executor.labels import Labels, parse_labels
from hypha_executor.safetensors import read_header, write_file

EXAMPLE = Path(__file__).parents[2] / "examples" / "inference.py"
SLICES = 6
ROWS = 4
EXPECTED = {index: [float(index + row) for row in range(ROWS)] for index in range(SLICES)}


def write_slices(directory: Path) -> list[Path]:
    """Slices of four samples with two values each. Sample r of slice s has the sum s + r."""
    directory.mkdir()
    paths = []
    for index in range(SLICES):
        values = array("f", [value for row in range(ROWS) for value in (index, row)])
        paths.append(directory / f"{index}.safetensors")
        write_file(paths[-1], [("x", "F32", (ROWS, 2))], [memoryview(values).cast("B")], {})
    return paths


def sums(directory: Path) -> dict[int, list[float]]:
    """The predicted sums of each slice, by what its file says about itself."""
    found = {}
    for path in directory.iterdir():
        header = read_header(path)
        labels = parse_labels(header.metadata)
        assert labels == Labels(labels.job_id, samples=ROWS, dataset="digits", slice_index=int(path.stem))
        found[int(path.stem)] = array("f", path.read_bytes()[header.tensors["sum"].offset :]).tolist()
    return found
