"""The entry point of inference, `hypha_trainer.inference --socket S --work-dir D --job JSON`."""

import argparse
import os
from typing import Final

from hypha_executor.arguments import read_job
from hypha_executor.bridge import Bridge
from hypha_executor.errors import JobError
from hypha_trainer.job import InferenceJob, parse_inference_job
from hypha_trainer.log import log
from hypha_trainer.program import add_output_arguments, end_with, exit_code_of, model_parser, start_fetching

_BATCHES_AHEAD: Final = 2
_DTYPES: Final = ("float32", "bfloat16", "float16")


def main(arguments: list[str] | None = None) -> int:
    """Run one job to its end; return the exit code."""
    options = _parse(arguments)
    return exit_code_of(lambda: _run(parse_inference_job(read_job(options)), options), options.work_dir)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = model_parser("python -m hypha_trainer.inference", "Predict the slices of one Hypha job of inference.")
    parser.add_argument("--dtype", choices=_DTYPES, default=_DTYPES[0], help="the dtype of the model (%(default)s)")
    add_output_arguments(parser, "predictions that the job wants sent to nobody")
    return parser.parse_args(arguments)


def _run(job: InferenceJob, options: argparse.Namespace) -> int:
    if job.results is None and options.output_dir is None:
        raise JobError("the job names no peers in results, and this worker keeps no predictions (--output-dir)")
    bridge = Bridge(options.socket, options.work_dir)
    try:
        return _infer(job, bridge, options)
    finally:
        bridge.telemetry.close()


def _infer(job: InferenceJob, bridge: Bridge, options: argparse.Namespace) -> int:
    fetched = start_fetching(bridge, job)

    # These imports take seconds, so the files are fetched meanwhile, and a wrong job is refused before.
    import torch  # noqa: PLC0415

    from hypha_trainer import devices  # noqa: PLC0415
    from hypha_trainer.models import load_model, load_preprocessor, set_pad_token  # noqa: PLC0415
    from hypha_trainer.predictions import Delivery, Predictor, infer, parts  # noqa: PLC0415
    from hypha_trainer.preprocessing import Preparation, ensure_pad_token, slice_names  # noqa: PLC0415
    from hypha_trainer.slices import ahead  # noqa: PLC0415

    demand, found = devices.read_demand(os.environ, fewer_gpus_allowed=options.allow_fewer_gpus), devices.find_devices()
    if (warning := devices.check_devices(demand, found)) and len(found.names) < demand.gpus:
        log(f"warning: {warning}")
    folder, preprocessor_folder = fetched.result()
    trusted = options.trust_remote_code
    preprocessor = None
    if job.preprocessor and preprocessor_folder:
        preprocessor = load_preprocessor(job.preprocessor.task, preprocessor_folder, trust_remote_code=trusted)
    several, device = torch.cuda.device_count() > 1, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(
        job.model.task,
        folder,
        trust_remote_code=trusted,
        placement={"device_map": "auto"} if several else {},  # spreads the layers of a large model over the devices
        dtype=getattr(torch, options.dtype),
        complete=True,
    )
    model = model if several else model.to(device)
    set_pad_token(model, ensure_pad_token(preprocessor))
    log(
        f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{device.type}, {options.dtype}"
    )
    predictor = Predictor(model, device, job.outputs)
    prepared = parts(bridge, job, slice_names(job), Preparation(job, preprocessor))
    deliver = Delivery(bridge, job, options.output_dir or options.work_dir, options.output_max_bytes)
    samples = infer(ahead(prepared, _BATCHES_AHEAD, "batches"), predictor, bridge, deliver)
    log(f"inference finished after {samples} samples")
    return 0


if __name__ == "__main__":
    end_with(main)
