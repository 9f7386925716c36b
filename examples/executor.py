"""An executor that learns the mean of a tensor: one parameter, trained by DiLoCo together with other such executors.

The job's data are slices with a float32 tensor of the model's first input name. A round's pseudo-gradient is the mean
of all values of the round less the current parameter.
"""

import sys
from array import array
from pathlib import Path

from hypha_executor.arguments import executor_parser, read_job
from hypha_executor.bridge import Bridge
from hypha_executor.errors import ExecutorError
from hypha_executor.incoming import Incoming
from hypha_executor.job import JobSpec, parse_job
from hypha_executor.labels import Labels
from hypha_executor.progress import Progress
from hypha_executor.safetensors import read_header, write_file


def train(spec: JobSpec, bridge: Bridge) -> float:
    """Train until the scheduler says that the job is done; return the parameter."""
    name = spec.config.node("model").texts("input-names")[0]
    data, updates, results = (spec.config.node(key).value for key in ("data", "updates", "results"))
    progress, incoming = Progress(bridge), Incoming(bridge, results)
    incoming.wait_open()
    mean, done, number = 0.0, False, 0
    while not done:
        number, values, batches_left = number + 1, array("f"), None
        while batches_left != 0:  # each slice is one batch; None until the scheduler sets the end of the round
            batch = take(bridge.fetch(data)[0], name)
            values.extend(batch)
            answer = progress.batch_trained(samples=len(batch))
            batches_left = answer.batches_left if answer.batches_left is not None else batches_left and batches_left - 1
        progress.update_due()
        gradient = array("f", [sum(values) / len(values) - mean])
        path = bridge.work_dir / f"pseudo-gradient-{number}.safetensors"
        labels = Labels(spec.job_id, number, len(values))
        write_file(path, [("mean", "F32", (1,))], [memoryview(gradient).cast("B")], labels.to_metadata())
        bridge.send(updates, path)
        if received := incoming.next():
            mean += take(bridge.inside(received.path), "mean")[0]
        path.unlink()
        done = progress.update_merged().done
    return mean


def take(path: Path, name: str) -> "array[float]":
    """Read a float32 tensor from a file and delete the file."""
    tensor = read_header(path).tensors[name]
    values = array("f", path.read_bytes()[tensor.offset : tensor.end])
    path.unlink()
    return values


if __name__ == "__main__":
    options = executor_parser("executor.py", __doc__).parse_args()
    try:
        print(train(parse_job(read_job(options), "train"), Bridge(options.socket, options.work_dir)))
    except ExecutorError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
