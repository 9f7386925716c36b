"""Downloads from Hugging Face repositories with the hub's own client, which handles revisions, tokens and breaks."""

import contextlib
import importlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from hypha_bridge.cache import Cache, Content, fetch
from hypha_bridge.connector import BACKOFF
from hypha_bridge.errors import BridgeError, forbidden, invalid_request, source_failed
from hypha_bridge.storage import JobFiles, disk_full_is_storage_exceeded
from hypha_bridge.trust import why_untrusted
from hypha_contracts.bridge_config import BridgeConfig
from hypha_messages.job import HuggingFaceReference

logger = logging.getLogger(__name__)

_PROXIES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy", "no_proxy"})
_PUBLIC_HUB: Final = "https://huggingface.co"


class Download(NamedTuple):
    """A file of a repository, and whether it came out of the cache."""

    path: Path
    cached: bool = False


class Hub:
    """Downloads from a hub. Thread-safe."""

    def __init__(self, config: BridgeConfig, files: JobFiles, authorities: Path) -> None:
        self._files = files
        self._endpoint = (config.hub_endpoint or os.environ.get("HF_ENDPOINT") or _PUBLIC_HUB).rstrip("/")
        self._lent = config.hub_token
        self._deadline_s = config.download_deadline_s
        self._stopping = threading.Event()
        self._importing = threading.Lock()
        self._client: Any = None
        self._cache = Cache(config.cache, self._stopping) if config.cache else None
        # The client reads these when it is imported. The import is slow, so it happens when a job first needs it.
        os.environ.update(
            HF_HOME=str(files.staging / "hub"),
            HF_HUB_DISABLE_IMPLICIT_TOKEN="1",  # noqa: S106 - a job uses its own token, never the host's
            HF_HUB_DISABLE_PROGRESS_BARS="1",
            HF_HUB_DISABLE_TELEMETRY="1",
        )
        if config.trust_pem:
            os.environ["SSL_CERT_FILE"] = str(authorities)
        if config.proxy:
            for name in [name for name in os.environ if name.lower() in _PROXIES]:
                del os.environ[name]
            os.environ.update(config.proxy.variables)

    def close(self) -> None:
        """Stop retrying."""
        self._stopping.set()

    @contextlib.contextmanager
    def download(self, reference: HuggingFaceReference, filename: str) -> Iterator[Download]:
        """Download one file to a path, from which the caller may move it within the context; BridgeError."""
        with tempfile.TemporaryDirectory(dir=self._files.staging, ignore_cleanup_errors=True) as directory:
            pauses = BACKOFF.pauses(self._deadline_s)
            while True:
                try:
                    downloaded = self._attempt(reference, filename, directory)
                    break
                except _Unavailable as error:
                    pause_s = next(pauses, None)
                    if pause_s is None or self._stopping.wait(pause_s):
                        raise source_failed(str(error)) from error
                    logger.info("%s; trying again in %.1f s", error, pause_s)
            yield downloaded

    def _attempt(self, reference: HuggingFaceReference, filename: str, directory: str) -> Download:
        hub = self._import()
        token = self._token(reference)
        arguments: dict[str, Any] = {
            "repo_id": reference.repository,
            "filename": filename,
            "revision": reference.revision,
            "token": token or False,
            "endpoint": self._endpoint,
            "local_dir": directory,
        }
        try:
            planned = hub.hf_hub_download(**arguments, dry_run=True)
            self._files.storage.check(planned.file_size or 0)
            arguments["revision"] = planned.commit_hash
            downloaded = self._download(arguments, without_token=token is None)
            downloaded.path.chmod(0o600)
        except BridgeError:
            raise
        except Exception as error:  # the client's errors have no common base
            raise self._translated(error, reference.repository, filename, with_token=token is not None) from error
        return downloaded

    def _download(self, arguments: dict[str, Any], *, without_token: bool) -> Download:
        hub = self._import()

        def download() -> Path:
            return Path(hub.hf_hub_download(**arguments))

        content = self._content(arguments) if without_token and self._cache else None
        if self._cache is None or content is None:
            return Download(download())
        with disk_full_is_storage_exceeded():
            return Download(*fetch(self._cache, content, Path(arguments["local_dir"], ".cached"), download))

    def _content(self, arguments: dict[str, Any]) -> Content | None:
        """Ask the hub for the hash of a file; None if it names none."""
        hub = self._import()
        name = {key: arguments[key] for key in ("repo_id", "filename", "revision", "endpoint")}
        metadata = hub.get_hf_file_metadata(hub.hf_hub_url(**name), token=arguments["token"])
        return Content.of(metadata.etag, metadata.size)

    def _token(self, reference: HuggingFaceReference) -> str | None:
        """Return the reference's own token, else the one that the worker's owner lends for this repository."""
        if reference.token:
            return reference.token
        if self._lent is None or reference.repository not in self._lent.repositories:
            return None
        try:
            token = self._lent.file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            # The job may not learn where the owner keeps the token.
            logger.warning("the token of hub_token cannot be read: %s", error)
            return None
        return token or None

    def _import(self) -> Any:
        with self._importing:
            if self._client is None:
                self._client = importlib.import_module("huggingface_hub")
                self._client.set_client_factory(self._http_client)
        return self._client

    def _http_client(self) -> Any:
        """Return the client's usual HTTP client, which sends tokens to no other host than the hub's."""
        # Not public, but the only way to keep its hooks, whether the client uses httpx or httpx2.
        client = importlib.import_module("huggingface_hub.utils._http").default_client_factory()
        url = type(client.base_url)

        def origin(address: Any) -> tuple[str, str, int | None]:
            return address.scheme, address.host, address.port

        def withhold_token(request: Any) -> None:
            if origin(request.url) != origin(url(self._endpoint)):
                request.headers.pop("authorization", None)

        client.event_hooks["request"].append(withhold_token)
        return client

    def _translated(self, error: Exception, repository: str, filename: str, *, with_token: bool) -> Exception:
        errors = importlib.import_module("huggingface_hub.errors")
        what = f"{repository}/{filename}"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        status = getattr(getattr(error, "response", None), "status_code", None)
        translated: Exception = _Unavailable(f"{what}: {type(error).__name__}: {reason}")
        match error:
            case _ if untrusted := why_untrusted(error):
                translated = source_failed(f"{what}: {untrusted}")
            case errors.HFValidationError():
                translated = invalid_request(f"{what}: {reason}")
            case errors.GatedRepoError():
                translated = forbidden(_gated(self._endpoint, repository, with_token=with_token))
            case errors.DisabledRepoError():
                translated = forbidden(f"{what}: {reason}")
            case errors.RepositoryNotFoundError():
                detail = f"the hub has no {what}, or it is private and the reference holds no token that may read it"
                translated = BridgeError(404, "not_found", detail)
            case errors.RevisionNotFoundError() | errors.RemoteEntryNotFoundError():
                translated = BridgeError(404, "not_found", f"{what}: {reason}")
            case _ if status == 401 and with_token:
                translated = forbidden(f"{what}: the hub does not know this token; make a new one that may read")
            case _ if status is not None and status < 500 and status != 429:
                translated = source_failed(f"{what}: {reason}")
        return translated


class _Unavailable(Exception):  # noqa: N818 - the hub does not answer
    pass


def _gated(endpoint: str, repository: str, *, with_token: bool) -> str:
    """Say that a repository is gated, and how to get access."""
    missing = (
        "the account of this token is not among those that may read it"
        if with_token
        else "the reference holds no token, and the worker's owner lends none for it"
    )
    return (
        f"the repository {repository} is gated, and {missing}. Ask for access on its page on the hub "
        f"{endpoint} with the account of a token. Then put that token into the job's reference, or have the worker's "
        "owner lend one (hub_token)."
    )
