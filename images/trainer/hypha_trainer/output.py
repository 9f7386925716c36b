"""Keep the trained model in a directory that outlives the job."""

import shutil
from pathlib import Path
from socket import gethostname

from hypha_trainer.log import log
from hypha_trainer.weights import Tensors, save_tensors


def keep_model(
    weights: Tensors, source: Path, directory: Path, name: str, max_bytes: int | None, *, work_dir: Path
) -> Path | None:
    """Write the trained weights, with the model's configuration and code, to a folder that appears when it is complete.

    The folder of an earlier run of the job is replaced. A model that cannot be kept does not end the job with an error,
    because the other trainers and the parameter server have it too.

    Args:
        weights: The weights.
        source: The folder with the model's files.
        directory: The directory of all trained models.
        name: The name of the folder.
        max_bytes: The size that the directory may reach. Nothing is deleted in it but what this job replaces.
        work_dir: The job's work directory. On a host its name is unique among workers of the job, and in a pod the host
            name is. So a partial folder with both names is what this worker's trainer left when it was killed.

    Returns:
        The folder, or None if the model was not kept.
    """
    folder, partial = directory / name, directory / f".partial-{name}-{gethostname()}-{work_dir.name}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
        wanted = sum(tensor.nbytes for tensor in weights.values())
        used = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        if max_bytes is not None and used + wanted > max_bytes:
            log(
                f"the trained model ({wanted} bytes) is not kept, because {directory} holds {used} of at most "
                f"{max_bytes} bytes; remove models there, or allow more"
            )
            return None
        complete, replaced = partial / "model", partial / "replaced"
        complete.mkdir(parents=True, mode=0o750)
        for file in (*source.glob("*.json"), *source.glob("*.py")):
            if not file.name.endswith(".index.json"):
                shutil.copyfile(file, complete / file.name)
        save_tensors(complete / "model.safetensors", weights.items(), weights, {"format": "pt"})
        if folder.exists():
            folder.rename(replaced)
        complete.rename(folder)
    except OSError as error:
        log(f"the trained model cannot be kept in {directory}: {error}")
        return None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log(f"the trained model is in {folder}")
    return folder
