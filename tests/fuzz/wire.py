"""Decoders that read from a stream, a file or an application, as functions of bytes."""

import json
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import h11
from libp2p.pubsub.pb import rpc_pb2
from libp2p.relay.circuit_v2.pb import circuit_pb2

from fuzz.target import drive
from hypha_bridge.api import create_app
from hypha_bridge.errors import invalid_request
from hypha_contracts.addresses import RESERVED_CIDRS
from hypha_contracts.job_telemetry import MetricRecord, SpanRecord, TelemetryBatch, valid
from hypha_executor.bridge import parse_events
from hypha_executor.telemetry import Telemetry
from hypha_network.certificates import parse_crls, parse_path, peer_id_of
from hypha_network.errors import ConnectionBroken
from hypha_network.services import gossip_messages
from hypha_network.services import identify as identify_service
from hypha_network.services.gossip import MAX_MESSAGES_PER_RPC
from hypha_network.services.hole_punching import CONNECT, SYNC, receive_addresses
from hypha_network.services.relay import peer_of, receive
from hypha_network.wire import addresses, multistream
from hypha_network.wire.yamux_session import YamuxSession
from hypha_worker.config_file import Loaded, load
from hypha_worker.connector import pushes
from hypha_worker.connector.http_server import Disconnected, Exchange, HttpError
from hypha_worker.runtimes.kubernetes.tokens import key_id_of, keys_of, pod_of
from hypha_worker.status import access
from hypha_worker.status.logs import parse_line
from support.certs import Pki
from support.tokens import AUDIENCE, USER, published

PKI: Final = Pki()
IDENTITY: Final = PKI.identity("fuzzed", crls=PKI.crls())
_EXCLUDED: Final = addresses.parse_cidrs(RESERVED_CIDRS)
_ISSUERS: Final = PKI.node("peer").issuers
HTTP_ERRORS: Final = (Disconnected, HttpError, h11.ProtocolError)
_KEYS: Final = keys_of(published("old"))
_FILE: Final = os.memfd_create("fuzzed")
_FILE_PATH: Final = Path(f"/proc/self/fd/{_FILE}")


class Channel:
    """A stream whose data has all arrived."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    async def read_exactly(self, size_bytes: int) -> bytes:
        taken = self._data[self._at : self._at + size_bytes]
        self._at += size_bytes
        if len(taken) < size_bytes:
            raise ConnectionBroken("the end")
        return taken

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        taken = self._data[self._at :] if max_bytes is None else self._data[self._at : self._at + max_bytes]
        self._at += len(taken)
        return taken

    async def write(self, data: bytes) -> None:
        pass

    async def send_all(self, data: bytes) -> None:
        pass

    def push_back(self, data: bytes) -> None:
        pass


def to_bytes(address: addresses.Address) -> bytes:
    return address.to_bytes()


def gossip_rpc(data: bytes) -> int:
    rpc = rpc_pb2.RPC.FromString(data)
    return sum(len(message.topicIDs) == 1 for message in rpc.publish[:MAX_MESSAGES_PER_RPC])


def gossip_message(data: bytes) -> None:
    message = rpc_pb2.Message.FromString(data)
    gossip_messages.verify(message)
    gossip_messages.message_id(message)


def identify(data: bytes) -> Any:
    return identify_service.decode(data)


def relay(data: bytes) -> None:
    for kind in (circuit_pb2.HopMessage, circuit_pb2.StopMessage):
        message = drive(receive(Channel(data), kind))
        if message.HasField("peer"):
            peer_of(message)
        if kind is circuit_pb2.HopMessage:
            addresses.usable(message.reservation.addrs, 4)


def hole_punch(data: bytes) -> None:
    for kind in (CONNECT, SYNC):
        drive(receive_addresses(Channel(data), kind, _EXCLUDED))  # type: ignore[arg-type]


_PROTOCOLS: Final = ["/hypha-api/0.0.1", "/ipfs/ping/1.0.0"]


def accept(data: bytes) -> str:
    return drive(multistream.accept(Channel(data), _PROTOCOLS))


def select(data: bytes) -> str:
    return drive(multistream.select(Channel(data), _PROTOCOLS))


def yamux(data: bytes) -> None:
    session = YamuxSession(is_initiator=False, clock=lambda: 0.0)
    stream = session.open()
    session.send(stream, memoryview(b"x" * 10))
    session.take_output()
    session.receive(data[: len(data) // 2])
    session.receive(data[len(data) // 2 :])
    while session.incoming:
        session.accept()
    for state in list(session.streams.values()):
        session.take(state)
    session.take_output()


def peer_certificate(data: bytes) -> str | None:
    path = parse_path([data])
    peer_id_of(path[0])
    return IDENTITY.revocation([*path, *_ISSUERS])


def revocation_list(data: bytes) -> Any:
    return parse_crls(data, "the list")


def worker_toml(data: bytes) -> Loaded:
    return load(_file(data), {})


def _file(data: bytes) -> Path:
    os.ftruncate(_FILE, 0)
    os.pwrite(_FILE, data, 0)
    return _FILE_PATH


def connector_http(data: bytes) -> Any:
    exchange = Exchange(Channel(data), "fuzzed", lambda: None)  # type: ignore[arg-type]
    drive(exchange.read_head())
    return drive(exchange.read_json())


def status_request(data: bytes) -> None:
    """Read a request for the status page, and decide whether it is answered."""
    exchange = Exchange(Channel(data), "fuzzed", lambda: None)  # type: ignore[arg-type]
    drive(exchange.read_head())
    access.check(exchange.method, exchange.path, exchange.headers, ["worker.example.org"])


def log_line(data: bytes) -> None:
    """Read a line of the log of a job."""
    parse_line("executor", data.decode(errors="replace"), 0.0)


def job_telemetry(data: bytes) -> int:
    """Read what a job reports, as the node does; return the number of usable records."""
    try:
        body = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    batch = TelemetryBatch.model_validate(body)
    return len(valid(SpanRecord, batch.spans)) + len(valid(MetricRecord, batch.metrics))


async def _refuse(*_: object, **_options: object) -> None:
    raise invalid_request("fuzzed")


def _refuse_now(*_: object) -> None:
    raise invalid_request("fuzzed")


_BRIDGE: Any = SimpleNamespace(
    fetcher=SimpleNamespace(fetch=_refuse),
    outbox=SimpleNamespace(send=_refuse),
    inbox=SimpleNamespace(listen=_refuse_now),
    report=_refuse,
    telemetry=Telemetry(lambda _batch: None, {"TRACEPARENT": f"00-{'ab' * 16}-{'cd' * 8}-01"}),
)
_APP: Final = create_app(_BRIDGE)
_PATHS: Final = ["/resources/fetch", "/resources/send", "/resources/receive", "/status/send"]


def bridge_api(data: bytes) -> int:
    """Call the API: the first byte selects the path, the rest of the first line is Last-Event-ID."""
    first_line, _, body = data.partition(b"\n")
    path = _PATHS[first_line[0] % len(_PATHS)] if first_line else _PATHS[0]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"last-event-id", first_line[1:])],
        "client": None,
        "server": None,
    }
    sent: list[Any] = []

    async def receive_body() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    drive(_APP(scope, receive_body, send))
    status: int = sent[0]["status"]
    return status


def event_stream(data: bytes) -> list[tuple[str, str]]:
    half = len(data) // 2
    return list(parse_events([data[:half], data[half:]]))


def push_label(data: bytes) -> str | None:
    return drive(pushes._read_label(Channel(struct.pack("<Q", len(data)) + data)))  # type: ignore[arg-type]


def pod_token(data: bytes) -> object:
    """Verify a token as the connector does, with the key that it names or another one."""
    token = data.decode("latin-1")
    key = _KEYS.get(key_id_of(token), _KEYS["old"])
    return pod_of(token, key, USER, AUDIENCE)
