"""Asks a running node for its state, at the socket in its private directory. It blocks."""

import http.client
import os
import socket
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from hypha_contracts.node_config import NodeConfig
from hypha_worker.errors import NodeError
from hypha_worker.state_dir import STATUS_SOCKET, find_state_dir
from hypha_worker.status.model import STATUS_PATH, Snapshot

TIMEOUT_S: Final = 5.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


def state_dir(config: NodeConfig) -> Path:
    """Return the private directory of the node with this configuration. IdentityError if that takes its identity."""
    if find_state_dir(config.work_dir, "") == config.work_dir:
        return config.work_dir
    from hypha_network.identity import Identity  # noqa: PLC0415 - takes long, and only a shared directory needs it

    identity = Identity.load(config.cert_pem, config.key_pem, config.trust_pem, config.crls_pem)
    return find_state_dir(config.work_dir, identity.peer_id)


def fetch(directory: Path) -> str:
    """Return the state of the node in this private directory as JSON. NodeError if no node answers there."""
    path = directory / STATUS_SOCKET
    connection = _UnixConnection(path)
    try:
        connection.request("GET", STATUS_PATH)
        answer = connection.getresponse()
        body = answer.read().decode()
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NodeError(
            f"no node runs in {directory}. Start it with `hypha-worker run`, or name the configuration of one that "
            "runs with --config."
        ) from error
    except PermissionError as error:
        raise NodeError(
            f"{path}: this user may not use it. Run this command as the user of the node, for example with sudo."
        ) from error
    except TimeoutError as error:
        raise NodeError(f"{path}: the node does not answer within {TIMEOUT_S:g} s. Its log may say why.") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NodeError(f"{path}: the node gave no answer: {error}. Try again.") from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise NodeError(f"{path}: the node answered {answer.status} {answer.reason}. Try again.")
    return body


def parse(text: str) -> Snapshot:
    """Return the state that `fetch` returned. NodeError if the node has another version with another form of it."""
    try:
        return Snapshot.model_validate_json(text)
    except ValidationError as error:
        raise NodeError(
            "the node gave its state in an unknown form. Use the hypha-worker of the version that runs."
        ) from error
