"""An executor of inference that needs no model: it predicts the sum of each sample's values.

The job's data are slices with a float32 tensor of the model's first input name, whose first dimension counts the
samples. The predictions of a slice are a float32 tensor `sum` with a value for each sample.
"""

import sys
from array import array
from pathlib import Path

from hypha_executor.arguments import executor_parser, read_job
from hypha_executor.bridge import Bridge
from hypha_executor.errors import ExecutorError, JobError
from hypha_executor.job import JobSpec, parse_job
from hypha_executor.labels import Labels
from hypha_executor.progress import Progress
from hypha_executor.safetensors import read_header, write_file


def infer(spec: JobSpec, bridge: Bridge) -> int:
    """Predict slice after slice until the scheduler has no more; return the number of slices."""
    name = spec.config.node("model").texts("input-names")[0]
    data, results = spec.config.node("data"), spec.config.node("results").value
    progress, count = Progress(bridge), 0
    while (slice_ := bridge.next_slice(data.value)) is not None:
        sums = predict(slice_.path, name)
        slice_.path.unlink()
        progress.batch_predicted(len(sums))
        labels = Labels(spec.job_id, samples=len(sums), dataset=data.text("dataset"), slice_index=slice_.index)
        path = bridge.work_dir / f"predictions-{slice_.index}.safetensors"
        write_file(path, [("sum", "F32", (len(sums),))], [memoryview(sums).cast("B")], labels.to_metadata())
        bridge.send(results, path, wait=True)  # only then does the slice count
        path.unlink()
        count += 1
        if progress.slice_predicted(slice_.index, len(sums)).done:
            break
    return count


def predict(path: Path, name: str) -> "array[float]":
    """Return the sum of each sample's values in a slice."""
    tensor = read_header(path).tensors.get(name)
    if tensor is None or tensor.dtype != "F32" or not tensor.shape or not tensor.shape[0]:
        raise JobError(f"the slice has no float32 tensor {name!r} with samples; correct the job's input-names")
    values = array("f", path.read_bytes()[tensor.offset : tensor.end])
    width = len(values) // tensor.shape[0]
    return array("f", (sum(values[row * width : (row + 1) * width]) for row in range(tensor.shape[0])))


if __name__ == "__main__":
    options = executor_parser("inference.py", __doc__).parse_args()
    try:
        print(infer(parse_job(read_job(options), "inference"), Bridge(options.socket, options.work_dir)), "slices")
    except ExecutorError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
