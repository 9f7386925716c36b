"""The table of the fuzz targets. CONTRIBUTING.md says how to add one."""

from typing import Any, Final

import httpx
import jwt
from google.protobuf.message import DecodeError as ProtobufError

from fuzz import seeds, wire
from fuzz.target import MAX_S, Target
from hypha_executor.bridge import MAX_EVENT_BYTES
from hypha_executor.errors import ExecutorError
from hypha_executor.incoming import parse_event
from hypha_executor.job import parse_job
from hypha_executor.safetensors import parse_header
from hypha_messages import advertisement, cbor, streams
from hypha_messages.api import API
from hypha_messages.health import HEALTH
from hypha_messages.progress import PROGRESS
from hypha_messages.protocol import Body
from hypha_messages.types import peer_id_from_bytes, peer_id_to_bytes
from hypha_network import pkcs8
from hypha_network.errors import IdentityError, NetworkError
from hypha_network.services import kademlia_messages
from hypha_network.wire import addresses, dnsaddr
from hypha_network.wire.yamux_frames import ProtocolError
from hypha_worker.config_file import ConfigError


def _body(name: str, body: Body[Any]) -> Target:
    return Target(body.decode, (cbor.DecodeError,), seeds.messages(name), seeds.CBOR_BOMBS, body.encode)


TARGETS: Final[dict[str, Target]] = {
    "cbor": Target(cbor.loads, (cbor.DecodeError,), seeds.messages(""), seeds.CBOR_BOMBS, cbor.dumps),
    "api-request": _body("api-request", API.request),
    "api-response": _body("api-response", API.response),
    "health-response": _body("health-response", HEALTH.response),
    "progress-request": _body("progress-request", PROGRESS.request),
    "progress-response": _body("progress-response", PROGRESS.response),
    "advertisement": Target(
        advertisement.decode,
        (cbor.DecodeError,),
        seeds.messages("request-worker"),
        seeds.CBOR_BOMBS,
        advertisement.encode,
    ),
    "inference-advertisement": Target(
        advertisement.decode_inference,
        (cbor.DecodeError,),
        seeds.INFERENCE_REQUESTS,
        seeds.CBOR_BOMBS,
        advertisement.encode,
    ),
    "pull-header": Target(
        lambda data: streams.decode_pull_header(data[: streams.MAX_PULL_HEADER_BYTES]),
        (cbor.DecodeError,),
        seeds.PULL_HEADERS,
        seeds.JSON_BOMBS,
        lambda slice_: streams.encode_pull_header(slice_)[streams.PULL_LENGTH_BYTES :],
    ),
    "peer-id": Target(peer_id_from_bytes, (ValueError,), seeds.PEER_IDS, {}, peer_id_to_bytes, 80),
    "multiaddress": Target(
        addresses.from_bytes, (addresses.AddressError,), seeds.MULTIADDRESSES, seeds.MULTIADDRESS_BOMBS, wire.to_bytes
    ),
    "address": Target(
        lambda data: addresses.parse(data.decode("latin-1")),
        (addresses.AddressError,),
        [address.encode() for address in seeds.ADDRESSES],
        {},
        lambda address: str(address).encode(),
    ),
    "gateway-name": Target(
        lambda data: dnsaddr.parse(data.decode("latin-1")),
        (addresses.AddressError,),
        [name.encode() for name in seeds.GATEWAY_NAMES],
        {},
        lambda gateway: str(gateway or "/ip4").encode(),
    ),
    "gossip-rpc": Target(wire.gossip_rpc, (ProtobufError,), seeds.GOSSIP, seeds.GOSSIP_BOMBS),
    "gossip-message": Target(wire.gossip_message, (ProtobufError, ValueError), seeds.GOSSIP_MESSAGES),
    "identify": Target(wire.identify, (ProtobufError,), seeds.IDENTIFY, seeds.IDENTIFY_BOMBS),
    "kademlia": Target(
        kademlia_messages.decode, (NetworkError,), seeds.KADEMLIA, seeds.KADEMLIA_BOMBS, kademlia_messages.encode
    ),
    "hole_punch": Target(wire.hole_punch, (NetworkError,), seeds.HOLE_PUNCH, seeds.HOLE_PUNCH_BOMBS),
    "relay": Target(wire.relay, (NetworkError,), seeds.RELAY, seeds.RELAY_BOMBS),
    "multistream-accept": Target(wire.accept, (NetworkError,), seeds.NEGOTIATIONS, seeds.NEGOTIATION_BOMBS),
    "multistream-select": Target(wire.select, (NetworkError,), seeds.NEGOTIATIONS, seeds.NEGOTIATION_BOMBS),
    "yamux": Target(wire.yamux, (ProtocolError,), seeds.YAMUX, seeds.YAMUX_BOMBS),
    "peer-certificate": Target(
        wire.peer_certificate,
        (IdentityError,),
        seeds.CERTIFICATES,
        seeds.CERTIFICATE_BOMBS,
    ),
    "revocation-list": Target(wire.revocation_list, (IdentityError,), seeds.REVOCATION_LISTS, seeds.LIST_BOMBS),
    "private-key": Target(pkcs8.seed_from_der, (ValueError,), seeds.PRIVATE_KEYS),
    "private-key-pem": Target(pkcs8.seed_from_pem, (ValueError,), seeds.PEM_KEYS, seeds.PEM_BOMBS, pkcs8.seed_to_pem),
    "pod-token": Target(wire.pod_token, (jwt.InvalidTokenError,), seeds.POD_TOKENS, seeds.POD_TOKEN_BOMBS),
    # The node reads its owner's file once, when it starts. An error counts all unknown keys, which pydantic describes.
    "worker-toml": Target(
        wire.worker_toml, (ConfigError,), seeds.WORKER_TOML, seeds.TOML_BOMBS, base_s=MAX_S, bytes_per_byte=200
    ),
    "connector-http": Target(wire.connector_http, wire.HTTP_ERRORS, seeds.HTTP, seeds.HTTP_BOMBS),
    "status-request": Target(wire.status_request, wire.HTTP_ERRORS, seeds.STATUS_REQUESTS, seeds.STATUS_BOMBS),
    "log-line": Target(wire.log_line, (), seeds.LOG_LINES, seeds.LOG_BOMBS),
    "bridge-api": Target(wire.bridge_api, (), seeds.BRIDGE_REQUESTS, seeds.BRIDGE_BOMBS),
    "job-telemetry": Target(wire.job_telemetry, (ValueError,), seeds.TELEMETRY, seeds.TELEMETRY_BOMBS),
    "job-file": Target(
        lambda data: parse_job(data.decode("latin-1"), "train"), (ExecutorError,), seeds.JOB_FILES, seeds.JSON_BOMBS
    ),
    "event-stream": Target(wire.event_stream, (httpx.HTTPError,), seeds.EVENT_STREAMS, seeds.EVENT_STREAM_BOMBS),
    "event": Target(
        lambda data: list(parse_event(data[:MAX_EVENT_BYTES].decode("latin-1"))), (), seeds.EVENTS, seeds.JSON_BOMBS
    ),
    # It runs in threads, and takes what the format's library takes, such as members in any order.
    "safetensors-sdk": Target(
        lambda data: parse_header(data, 1000), (ExecutorError,), seeds.SAFETENSORS, seeds.LABEL_BOMBS, base_s=0.005
    ),
    "push-label": Target(wire.push_label, (), seeds.SAFETENSORS, seeds.LABEL_BOMBS),
}
