"""Downloads from Hugging Face repositories with the hub's own client, which handles revisions, tokens and breaks."""

import contextlib
import importlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypha_bridge.connector import BACKOFF
from hypha_bridge.errors import BridgeError, forbidden, invalid_request, source_failed
from hypha_bridge.storage import JobFiles
from hypha_contracts.bridge_config import BridgeConfig
from hypha_messages.job import HuggingFaceReference

logger = logging.getLogger(__name__)


class Hub:
    """Downloads from a hub. Thread-safe."""

    def __init__(self, config: BridgeConfig, files: JobFiles) -> None:
        self._files = files
        self._endpoint = config.hub_endpoint
        self._deadline_s = config.download_deadline_s
        self._stopping = threading.Event()
        # The client reads these when it is imported. The import is slow, so it happens when a job first needs it.
        os.environ.update(
            HF_HOME=str(files.staging / "hub"),
            HF_HUB_DISABLE_IMPLICIT_TOKEN="1",  # noqa: S106 - a job uses its own token, never the host's
            HF_HUB_DISABLE_PROGRESS_BARS="1",
            HF_HUB_DISABLE_TELEMETRY="1",
        )

    def close(self) -> None:
        """Stop retrying."""
        self._stopping.set()

    @contextlib.contextmanager
    def download(self, reference: HuggingFaceReference, filename: str) -> Iterator[Path]:
        """Download one file to the path, from which the caller may move it within the context; BridgeError."""
        with tempfile.TemporaryDirectory(dir=self._files.staging, ignore_cleanup_errors=True) as directory:
            pauses = BACKOFF.pauses(self._deadline_s)
            while True:
                try:
                    path = self._attempt(reference, filename, directory)
                    break
                except _Unavailable as error:
                    pause_s = next(pauses, None)
                    if pause_s is None or self._stopping.wait(pause_s):
                        raise source_failed(str(error)) from error
                    logger.info("%s; trying again in %.1f s", error, pause_s)
            yield path

    def _attempt(self, reference: HuggingFaceReference, filename: str, directory: str) -> Path:
        hub = importlib.import_module("huggingface_hub")
        arguments: dict[str, Any] = {
            "repo_id": reference.repository,
            "filename": filename,
            "revision": reference.revision,
            "token": reference.token or False,
            "endpoint": self._endpoint,
            "local_dir": directory,
        }
        try:
            planned = hub.hf_hub_download(**arguments, dry_run=True)
            self._files.storage.check(planned.file_size or 0)
            path = Path(hub.hf_hub_download(**arguments))
            path.chmod(0o600)
        except BridgeError:
            raise
        except Exception as error:  # the client's errors have no common base
            raise _translate(error, f"{reference.repository}/{filename}") from error
        return path


class _Unavailable(Exception):  # noqa: N818 - the hub does not answer
    pass


def _translate(error: Exception, what: str) -> Exception:
    errors = importlib.import_module("huggingface_hub.errors")
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, errors.HFValidationError):
        return invalid_request(f"{what}: {reason}")
    if isinstance(error, errors.GatedRepoError | errors.DisabledRepoError):
        return forbidden(f"{what}: {reason}")
    if isinstance(error, errors.RepositoryNotFoundError):
        detail = f"the hub has no {what}, or it is private and the reference holds no token that may read it"
        return BridgeError(404, "not_found", detail)
    if isinstance(error, errors.RevisionNotFoundError | errors.RemoteEntryNotFoundError):
        return BridgeError(404, "not_found", f"{what}: {reason}")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None and status < 500 and status != 429:
        return source_failed(f"{what}: {reason}")
    return _Unavailable(f"{what}: {type(error).__name__}: {reason}")
