"""Downloads over HTTP(S) from allowed addresses: they resume after a break and compute the checksum on the way."""

import contextlib
import logging
import ssl
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import httpx

from hypha_bridge.address_policy import RestrictedTransport
from hypha_bridge.connector import BACKOFF
from hypha_bridge.decoding import Decoder, EncodingError
from hypha_bridge.errors import invalid_request, source_failed
from hypha_bridge.storage import StagedFile, Storage
from hypha_bridge.trust import why_untrusted
from hypha_contracts.bridge_config import BridgeConfig
from hypha_contracts.proxies import Proxies

logger = logging.getLogger(__name__)

_TIMEOUT: Final = httpx.Timeout(60, connect=15)
_BUFFER_BYTES: Final = 1024 * 1024
_MAX_REDIRECTS: Final = 10
_RETRYABLE: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class Downloads:
    """Downloads over HTTP(S). Thread-safe."""

    def __init__(self, config: BridgeConfig, storage: Storage, authorities: Path) -> None:
        self._storage = storage
        self._deadline_s = config.download_deadline_s
        self._stopping = threading.Event()
        context, proxies = ssl.create_default_context(cafile=authorities), config.proxy or Proxies()
        http, https = (
            RestrictedTransport(config.reachable, context, partial(proxies.of, scheme)) for scheme in ("http", "https")
        )
        self._client = httpx.Client(
            transport=https,
            mounts={"http://": http},
            timeout=_TIMEOUT,
            headers={"Accept-Encoding": "identity"},
            trust_env=False,
        )

    def close(self) -> None:
        """Stop each download at its next chunk."""
        self._stopping.set()

    def download(self, uri: str, staged: StagedFile) -> None:
        """Download a file into a staged one; BridgeError."""
        url = _parse(uri)
        pauses = BACKOFF.pauses(self._deadline_s)
        validator: str | None = None
        while True:
            size_before = staged.size_bytes
            try:
                validator = self._attempt(url, staged, validator)
            except _Broken as broken:
                if validator and staged.size_bytes > size_before:
                    pauses = BACKOFF.pauses(self._deadline_s)
                pause_s = next(pauses, None)
                if pause_s is None or self._stopping.wait(pause_s):
                    raise source_failed(f"{_shown(url)}: {broken}") from broken
                validator = broken.validator or validator
                logger.info("%s: %s; trying again at byte %d", _shown(url), broken, staged.size_bytes)
            else:
                return

    def _attempt(self, url: httpx.URL, staged: StagedFile, validator: str | None) -> str | None:
        """Download the missing part; _Broken if another attempt may succeed."""
        headers = {"Range": f"bytes={staged.size_bytes}-", "If-Range": validator} if validator else {}
        try:
            with self._open(url, headers) as response:
                body = self._prepare(response, staged)
                validator = body.validator
                for piece in body.pieces():
                    if self._stopping.is_set():
                        raise source_failed("the bridge is stopping")
                    staged.write(piece)
        except EncodingError as error:
            raise source_failed(f"{_shown(url)}: {error}") from error
        except httpx.UnsupportedProtocol as error:
            raise source_failed(f"{_shown(url)} redirects to something that is not HTTP: {error}") from error
        except httpx.TransportError as error:
            if reason := why_untrusted(error):
                raise source_failed(f"{_shown(url)}: {reason}") from error
            raise _Broken(f"{type(error).__name__}: {error}", validator) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise source_failed(f"{_shown(url)}: {error}") from error
        if problem := body.problem():
            raise _Broken(problem, validator)
        return validator

    @contextlib.contextmanager
    def _open(self, url: httpx.URL, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """Follow redirects without reading their bodies, which httpx would do into memory, and decompress."""
        request = self._client.build_request("GET", url, headers=headers)
        for _ in range(_MAX_REDIRECTS + 1):
            with contextlib.closing(self._client.send(request, stream=True)) as response:
                if response.next_request is None:
                    yield response
                    return
                request = response.next_request
        raise source_failed(f"{_shown(url)}: more than {_MAX_REDIRECTS} redirects")

    def _prepare(self, response: httpx.Response, staged: StagedFile) -> "_Body":
        """Check the response and start over unless it resumes. Return its body."""
        if response.status_code in _RETRYABLE:
            raise _Broken(f"HTTP {response.status_code}", None)
        if response.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
            raise source_failed(f"{_shown(response.url)}: HTTP {response.status_code} {response.reason_phrase}")
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {staged.size_bytes}-")
        if response.status_code == httpx.codes.OK or not resumed:
            staged.restart()
        if response.status_code == httpx.codes.PARTIAL_CONTENT and not resumed:
            raise _Broken("the server resumed at a byte that the bridge did not ask for", None)
        body = _Body(response)
        if resumed and body.decoder:
            raise _Broken("the server resumed with an encoding that the file did not have before", None)
        self._storage.check(body.length or 0)
        return body


class _Body:
    """The body of a response: the file, or the rest of it.

    Attributes:
        length: how many bytes the server announces, if it does.
        validator: the entity tag with which the download may resume.
        decoder: decodes the body if the server has encoded it. Such a download starts over after a break, because its
            bytes are not those of the file.
    """

    def __init__(self, response: httpx.Response) -> None:
        length = response.headers.get("Content-Length", "")
        self.length = int(length) if length.isdecimal() else None
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        self.decoder = Decoder(encoding) if encoding not in ("identity", "") else None
        self.validator = None if self.decoder else _validator(response)
        self._response = response

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes of the file; EncodingError or an error of the library."""
        for chunk in self._response.iter_raw(_BUFFER_BYTES):
            if self.decoder:
                yield from self.decoder.feed(chunk)
            else:
                yield chunk

    def problem(self) -> str | None:
        """Return why the body that was read to its end is incomplete, or None."""
        received = self._response.num_bytes_downloaded
        if self.length not in (None, received):
            return f"{received} of {self.length} bytes"
        if received and self.decoder and not self.decoder.complete:
            return f"the compressed data breaks off after {received} bytes"
        return None


class _Broken(Exception):  # noqa: N818 - an interruption
    def __init__(self, reason: str, validator: str | None) -> None:
        super().__init__(reason)
        self.validator = validator


def file_name(uri: str) -> str:
    """Return the last segment of a URI's path, or a default name if it is empty; BridgeError (400)."""
    return _parse(uri).path.rpartition("/")[2] or "part-0.bin"


def _parse(uri: str) -> httpx.URL:
    try:
        url = httpx.URL(uri)
    except (httpx.InvalidURL, ValueError) as error:
        raise invalid_request(f"not a URI: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise invalid_request(f"{_shown(url)!r} is not an http:// or https:// URI")
    return url


def _shown(url: httpx.URL) -> str:
    """Return the scheme and the host. The other parts may hold secrets."""
    return f"{url.scheme}://{url.host}"


def _validator(response: httpx.Response) -> str | None:
    """Return the strong entity tag that identifies this version of the file. A date may identify two versions."""
    etag: str | None = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") and response.headers.get("Accept-Ranges") != "none" else None
