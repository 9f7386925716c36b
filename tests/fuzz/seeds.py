"""Valid inputs for the targets, and bombs: large inputs that cost a careless decoder much."""

import base64
import json
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.relay.circuit_v2.pb import circuit_pb2
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch

from fuzz.wire import PKI
from hypha_executor.safetensors import lay_out
from hypha_messages import cbor
from hypha_messages.types import peer_id_to_bytes
from hypha_network import pkcs8
from hypha_network.wire import addresses
from hypha_network.wire.multistream import prefixed
from hypha_network.wire.yamux_frames import ACK, DATA, FIN, GO_AWAY, HEADER, PING, RST, SYN, WINDOW_UPDATE
from support import recorded_network as recorded
from support.cbor_bombs import BOMBS
from support.tokens import token

_MESSAGES: Final = Path(__file__).parents[1] / "messages"
_PEER: Final = "12D3KooWF8o9cA532TjN4kByfuKUEnX4BdZzxUh1z7TUEfzk23Ne"
_KIB: Final = 1024
_MIB: Final = 1024 * 1024


def messages(body: str) -> list[bytes]:
    """Return the recorded messages of one body, or of all."""
    encoded = [v for v in json.loads((_MESSAGES / "encoded.json").read_text()) if "cbor" in v]
    recorded_ = json.loads((_MESSAGES / "recorded.json").read_text())
    named = [(v["name"].split()[0], v["cbor"]) for v in encoded] + [(v["body"], v["cbor"]) for v in recorded_]
    return [bytes.fromhex(wire) for name, wire in named if name.startswith(body)]


INFERENCE_REQUESTS: Final = [
    message.replace(cbor.dumps("train"), cbor.dumps("inference")) for message in messages("request-worker")
]

_ID: Final = bytes(16)
CBOR_BOMBS: Final = {
    **BOMBS,
    "a message of many peers": cbor.dumps({"WorkerOffer": [peer_id_to_bytes(_PEER)] * 1000}),
    "many keys": cbor.dumps({f"{n:04}": n for n in range(500)}),
    "many metrics": cbor.dumps(
        {"job_id": _ID, "progress": {"metrics": {"round": 1, "metrics": {f"{n}": "x" for n in range(256)}}}}
    ),
    "a long text": cbor.dumps({"Data": {"dataset": "x" * _MIB}}),
    "a long uuid": cbor.dumps({"RenewLease": {"id": "1" * _MIB}}),
    "many small items": b"\x98\xff" + b"\x80" * 255,
    "as many small items as allowed": b"\x99\x02\x20" + b"\xa0" * 0x220,
    "as many items as allowed in 64 KiB": b"\x99\x0f\xf0" + b"\x70" + b"x" * 16 + (b"\x70" + b"x" * 16) * (0xFF0 - 1),
}

JSON_BOMBS: Final = {
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "closed deep lists": b"[" * 100_000 + b"]" * 100_000,
    "a long integer": b"1" * 100_000,
    "an integer of the longest length": b"1" * 4300,
    "many long integers": b"[" + b",".join([b"1" * 4000] * 60) + b"]",
    "a float of a long exponent": b"1e" + b"9" * 100_000,
    "many empty lists": b"[" + b"[]," * 80_000 + b"[]]",
    "many empty objects": b"[" + b"{}," * 80_000 + b"{}]",
    "many small objects": b"[" + b'{"":0},' * 40_000 + b"{}]",
    "many names": b"{" + b",".join(b'"%d":0' % n for n in range(30_000)) + b"}",
    "many tensors": b"{" + b",".join(b'"%d":{}' % n for n in range(30_000)) + b"}",
    "the same name": b"{" + b'"a":0,' * 40_000 + b'"a":0}',
    "a long text": b'"' + b"x" * _MIB + b'"',
    "escapes": b'"' + b"\\u0000" * 40_000 + b'"',
    "a broken text": b'"' + b"\\" * 100_000,
}

PULL_HEADERS: Final = [b'{"dataset":"digits","index":3}']

PEER_IDS: Final = [peer_id_to_bytes(_PEER), b"\x12\x20" + bytes(32)]
ADDRESSES: Final = [
    "/ip4/127.0.0.1/tcp/4001",
    f"/ip6/2001:db8::1/tcp/1/p2p/{_PEER}",
    f"/dns4/host.example/tcp/4001/p2p/{_PEER}/p2p-circuit/p2p/{_PEER}",
    f"/dns/host/tcp/65535/p2p/{_PEER}/p2p-circuit",
    "/ip4/127.0.0.1/udp/4001/quic-v1",
    "/ip4/127.0.0.1/udp/4001/webrtc-direct",
]
GATEWAY_NAMES: Final = ["/dnsaddr/gateway.example.org", f"/dnsaddr/gateway.example.org/p2p/{_PEER}", ADDRESSES[0]]
MULTIADDRESSES: Final = [addresses.parse(text).to_bytes() for text in ADDRESSES[:5]] + [
    bytes.fromhex("047f000001910203e89802")
]
MULTIADDRESS_BOMBS: Final = {
    "many circuits": MULTIADDRESSES[0] + b"\xa2\x02" * 500,
    "many ports": b"\x06\x00\x01" * 340,
    "many ports and names": (b"\x06\x00\x01" + b"\x35\x01x") * 170,
    "many peers": (b"\xa5\x03\x22" + PEER_IDS[1]) * 27,
    "a long name": b"\x35\xf0\x07" + b"x" * 1008,
    "a megabyte": b"\x06\x00\x01" * 350_000,
}


def _repeated(field: int, content: bytes, total_bytes: int) -> bytes:
    """Return a protobuf message that repeats one field of bytes up to a size."""
    one = bytes([field << 3 | 2]) + prefixed(content)
    return one * (total_bytes // len(one))


GOSSIP: Final = [
    recorded.GOSSIP,
    rpc_pb2.RPC(
        subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid="hypha/worker")],
        control=rpc_pb2.ControlMessage(
            ihave=[rpc_pb2.ControlIHave(topicID="t", messageIDs=[b"1"])],
            iwant=[rpc_pb2.ControlIWant(messageIDs=[b"1"])],
            graft=[rpc_pb2.ControlGraft(topicID="t")],
            prune=[rpc_pb2.ControlPrune(topicID="t", backoff=60)],
        ),
    ).SerializeToString(),
]
GOSSIP_MESSAGES: Final = [message.SerializeToString() for message in rpc_pb2.RPC.FromString(recorded.GOSSIP).publish]
_GROUPS: Final = b"\x7b" * 10_000
GOSSIP_BOMBS: Final = {
    "empty messages": _repeated(2, b"", 64 * _KIB),
    "empty subscriptions": _repeated(1, b"", 64 * _KIB),
    "messages with short sequence numbers": _repeated(2, b"\x1a\x01\x01", 64 * _KIB),
    "a long sequence number": _repeated(2, b"\x1a" + prefixed(b"\xff" * 1800), 64 * _KIB),
    "unknown fields": b"\x78\x01" * 32_000,
    "nested groups": _GROUPS,
    "empty control entries": b"\x1a" + prefixed(_repeated(1, b"", 60 * _KIB)),
    "ids of messages": b"\x1a" + prefixed(b"\x12" + prefixed(_repeated(1, b"1", 60 * _KIB))),
    "grafts": b"\x1a" + prefixed(_repeated(3, b"\x0a\x01t", 60 * _KIB)),
    "prunes": b"\x1a" + prefixed(_repeated(4, b"\x0a\x01t", 60 * _KIB)),
}

IDENTIFY: Final = [recorded.IDENTIFY]
IDENTIFY_BOMBS: Final = {
    "tiny addresses": _repeated(2, b"\x04", 64 * _KIB),
    "empty addresses": _repeated(2, b"", 64 * _KIB),
    "addresses of an unsupported transport": _repeated(2, MULTIADDRESSES[-1], 64 * _KIB),
    "the same address": _repeated(2, MULTIADDRESSES[0], 64 * _KIB),
    "long addresses": _repeated(2, b"\x06\x00\x01" * 340, 64 * _KIB),
    "protocols": _repeated(3, b"", 64 * _KIB),
    "unknown fields": b"\x78\x01" * 32_000,
    "nested groups": _GROUPS,
}
KADEMLIA: Final = [
    value
    for name, value in vars(recorded).items()
    if name.isupper() and isinstance(value, bytes) and name not in ("IDENTIFY", "GOSSIP")
]
_KADEMLIA_PEER: Final = b"\x0a" + prefixed(PEER_IDS[0])
KADEMLIA_BOMBS: Final = {
    "peers": _repeated(8, _KADEMLIA_PEER, 16 * _KIB),
    "a peer of many addresses": _repeated(8, _KADEMLIA_PEER + _repeated(2, b"\x04", 15 * _KIB), 16 * _KIB),
    "peers of many addresses": _repeated(8, _KADEMLIA_PEER + _repeated(2, b"\x04", 700), 16 * _KIB),
    "peers of usable addresses": _repeated(
        8,
        _KADEMLIA_PEER + b"".join(b"\x12" + prefixed(b"\x04\n\0\0%c\x06\0\1" % n) for n in range(70)),
        16 * _KIB,
    ),
}
RELAY: Final = [
    prefixed(message.SerializeToString())
    for message in (
        circuit_pb2.HopMessage(type=circuit_pb2.HopMessage.RESERVE),
        circuit_pb2.HopMessage(
            type=circuit_pb2.HopMessage.STATUS,
            status=circuit_pb2.Status.OK,
            reservation=circuit_pb2.Reservation(expire=2**33, addrs=MULTIADDRESSES),
            limit=circuit_pb2.Limit(duration=120, data=1024),
        ),
        circuit_pb2.StopMessage(type=circuit_pb2.StopMessage.CONNECT, peer=circuit_pb2.PeerId(id=PEER_IDS[0])),
    )
]

HOLE_PUNCH: Final = [
    prefixed(HolePunch(type=kind, ObsAddrs=known).SerializeToString())
    for kind, known in ((HolePunch.CONNECT, MULTIADDRESSES), (HolePunch.CONNECT, []), (HolePunch.SYNC, []))
]
HOLE_PUNCH_BOMBS: Final = {
    "empty addresses": prefixed(b"\x08\x64" + _repeated(2, b"", 3 * _KIB)),
    "addresses of QUIC": prefixed(b"\x08\x64" + _repeated(2, MULTIADDRESSES[-1], 3 * _KIB)),
    "long addresses": prefixed(b"\x08\x64" + _repeated(2, b"\x06\x00\x01" * 340, 3 * _KIB)),
    "the same address": prefixed(b"\x08\x64" + _repeated(2, MULTIADDRESSES[0], 3 * _KIB)),
    "no kind": prefixed(_repeated(2, MULTIADDRESSES[0], 3 * _KIB)),
}
RELAY_BOMBS: Final = {
    "empty addresses": prefixed(b"\x1a" + prefixed(_repeated(2, b"", 3 * _KIB))),
    "addresses of an unsupported transport": prefixed(b"\x1a" + prefixed(_repeated(2, MULTIADDRESSES[-1], 3 * _KIB))),
    "long addresses": prefixed(b"\x1a" + prefixed(_repeated(2, b"\x06\x00\x01" * 340, 3 * _KIB))),
    "a long peer id": prefixed(b"\x12" + prefixed(b"\x0a" + prefixed(b"x" * 3 * _KIB))),
    "unknown fields": prefixed(b"\x78\x01" * 1500),
    "a length of a gigabyte": b"\xff\xff\xff\xff\x03" + b"x" * _KIB,
    "an endless length": b"\xff" * _MIB,
}


def _lines(*texts: str) -> bytes:
    return b"".join(prefixed(text.encode() + b"\n") for text in texts)


NEGOTIATIONS: Final = [
    _lines("/multistream/1.0.0", "/ipfs/ping/1.0.0"),
    _lines("/multistream/1.0.0", "na", "/hypha-api/0.0.1"),
    _lines("/multistream/1.0.0", *["na"] * 40),
]

NEGOTIATION_BOMBS: Final = {
    "many refusals": _lines("/multistream/1.0.0", *["na"] * 20_000),
    "many unknown protocols": _lines("/multistream/1.0.0", *["/x"] * 20_000),
    "empty lines": _lines("/multistream/1.0.0") + b"\x01\n" * 50_000,
    "empty messages": _lines("/multistream/1.0.0") + b"\0" * 100_000,
    "a long protocol": _lines("/multistream/1.0.0", "/" + "x" * _MIB),
    "an endless length": b"\xff" * _MIB,
}


def _frame(kind: int, flags: int, stream_id: int, length: int, body: bytes = b"") -> bytes:
    return HEADER.pack(0, kind, flags, stream_id, length) + body


YAMUX: Final = [
    _frame(WINDOW_UPDATE, SYN, 1, 0) + _frame(DATA, 0, 1, 5, b"hello") + _frame(DATA, FIN, 1, 0),
    _frame(WINDOW_UPDATE, ACK, 2, 1000) + _frame(DATA, 0, 2, 2, b"hi") + _frame(DATA, RST, 2, 0),
    _frame(PING, SYN, 0, 7) + _frame(PING, ACK, 0, 7) + _frame(GO_AWAY, 0, 0, 0),
]
YAMUX_BOMBS: Final = {
    "as many streams as allowed": b"".join(_frame(WINDOW_UPDATE, SYN, 2 * n + 1, 0) for n in range(256)),
    "more streams than allowed": b"".join(_frame(WINDOW_UPDATE, SYN, 2 * n + 1, 0) for n in range(500)),
    "streams that begin and end": b"".join(
        _frame(WINDOW_UPDATE, SYN, 2 * n + 1, 0) + _frame(WINDOW_UPDATE, RST, 2 * n + 1, 0) for n in range(250)
    ),
    "empty data": YAMUX[0][:12] + _frame(DATA, 0, 1, 0) * 500,
    "single bytes": YAMUX[0][:12] + _frame(DATA, 0, 1, 1, b"x") * 500,
    "credit of zero": YAMUX[0][:12] + _frame(WINDOW_UPDATE, 0, 1, 0) * 500,
    "pings": _frame(PING, SYN, 0, 1) * 500,
    "answers to pings": _frame(PING, ACK, 0, 1) * 500,
    "resets of unknown streams": _frame(WINDOW_UPDATE, RST, 1, 0) * 500,
}


def _certificate(*extensions: x509.ExtensionType, names: int = 1) -> bytes:
    """Return a certificate in DER, signed by an organisation."""
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"peer {n}") for n in range(names)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(PKI.organisation.certificate.subject)
        .public_key(Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(PKI.organisation.key, None).public_bytes(Encoding.DER)


CERTIFICATES: Final = [
    PKI.node("peer").certificate.public_bytes(Encoding.DER),
    PKI.organisation.certificate.public_bytes(Encoding.DER),
    _certificate(),
]
CERTIFICATE_BOMBS: Final = {
    "many alternative names": _certificate(
        x509.SubjectAlternativeName([x509.IPAddress(IPv4Address(n)) for n in range(10_000)])
    ),
    "a huge extension": _certificate(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x" * 90_000)),
    "many extensions": _certificate(
        *(x509.UnrecognizedExtension(x509.ObjectIdentifier(f"1.2.3.{n}"), b"") for n in range(3000))
    ),
    "a subject of many names": _certificate(names=2000),
}
_CRL_BEGIN, _CRL_END = b"-----BEGIN X509 CRL-----\n", b"-----END X509 CRL-----\n"
REVOCATION_LISTS: Final = [PKI.crls(), PKI.crls(PKI.node("revoked"))]
LIST_BOMBS: Final = {
    "beginnings": _CRL_BEGIN * 20_000,
    "empty lists": (_CRL_BEGIN + _CRL_END) * 20_000,
}

_HEADER: Final = base64.urlsafe_b64encode(b'{"alg":"ES256","kid":"old"}').rstrip(b"=")
POD_TOKENS: Final = [token().encode(), token("other").encode(), token(aud=None).encode(), token(exp=None).encode()]
POD_TOKEN_BOMBS: Final = {
    "a nested header": base64.urlsafe_b64encode(b"[" * 190).rstrip(b"=") + b".e30.c2ln",
    "a nested payload": _HEADER + b"." + base64.urlsafe_b64encode(b"[" * 3000).rstrip(b"=") + b".c2ln",
    "a long header": b"A" * 20_000 + b".e30.c2ln",
    "many dots": b"." * 100_000,
}

_SEED: Final = bytes(range(32))
PEM_KEYS: Final = [pkcs8.seed_to_pem(_SEED), pkcs8.seed_to_pem(_SEED).replace(b"PRIVATE", b"ENCRYPTED PRIVATE")]
_V1: Final = base64.b64decode(b"".join(PEM_KEYS[0].split(b"\n")[1:-2]))
_PUBLIC: Final = Ed25519PrivateKey.from_private_bytes(_SEED).public_key().public_bytes_raw()
PRIVATE_KEYS: Final = [_V1, b"\x30\x51\x02\x01\x01" + _V1[5:] + b"\x81\x21\x00" + _PUBLIC]
PEM_BOMBS: Final = {
    "beginnings": b"-----BEGIN PRIVATE KEY-----\n" * 20_000,
    "long labels": b"-----BEGIN " + b"PRIVATE KEY " * 20_000,
    "many labels": b"-----BEGIN A PRIVATE KEY " * 20_000,
    "a long key": b"-----BEGIN PRIVATE KEY-----\n" + b"A" * 400_000 + b"-----END PRIVATE KEY-----\n",
}

_TOML: Final = """
cert_pem = "c"
key_pem = "k"
trust_pem = "t"
gateways = ["/ip4/127.0.0.1/tcp/4001"]
work_dir = "/tmp"
[resources]
cpu = 1
memory = 1.5
storage = 1
[[executors]]
class = "train"
name = "diloco"
"""
WORKER_TOML: Final = [
    _TOML.encode(),
    _TOML.replace('"c"', '"~x"').encode(),
    b"a = [1, {b = 2}]\nc.d = '''x'''\n",
    b"'' = 1979-05-27T07:32:00Z\n",
]
TOML_BOMBS: Final = {
    "deep lists": b"a = " + b"[" * 100_000,
    "deep tables": b"a = " + b"{a=" * 20_000,
    "a long dotted key": b".".join([b"a"] * 20_000) + b" = 1",
    "a long table name": b"[" + b".".join([b"a"] * 20_000) + b"]",
    "dotted keys": b"".join(b"a.b.c.d%d = 1\n" % n for n in range(2000)),
    "tables": b"".join(b"[t%d]\n" % n for n in range(2000)),
    "arrays of tables": b"[[executors]]\n" * 2000,
    "a long integer": b"a = " + b"1" * 100_000,
    "many long integers": b"a = [" + b"1" * 4000 + b"," + b"1" * 4000 + b"]",
    "a long date": b"a = 1979-05-27T07:32:00." + b"0" * 100_000,
    "quotes": b"a = " + b'"' * 100_000,
    "comments": b"#\n" * 10_000,
    "brackets": b"[ \n" * 20_000,
}

_HEAD: Final = b"POST /slices/next?a=b HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer token\r\n"
HTTP: Final = [
    _HEAD + b"Content-Length: 2\r\n\r\n{}",
    _HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    _HEAD + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\nnull",
]
HTTP_BOMBS: Final = {
    "tiny chunks": _HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n1\r\n" * 80_000,
    "headers": _HEAD + b"a:b\r\n" * 3000 + b"\r\n",
    "a long header": _HEAD + b"a:" + b"b" * 15_000 + b"\r\n\r\n",
    "an endless head": b"GET /" + b"a" * 500_000,
    "parameters": b"GET /?" + b"a=b&" * 3500 + b" HTTP/1.1\r\nHost: n\r\n\r\n",
    "percent signs": b"GET /?" + b"%41" * 4500 + b"=1 HTTP/1.1\r\nHost: n\r\n\r\n",
    "empty lines": b"\r\n" * 200_000,
    **{f"body: {name}": _HEAD + b"Content-Length: %d\r\n\r\n" % len(bomb) + bomb for name, bomb in JSON_BOMBS.items()},
}

STATUS_REQUESTS: Final = [
    b"GET / HTTP/1.1\r\nHost: [::1]:8081\r\nSec-Fetch-Site: none\r\n\r\n",
    b"GET /status.json HTTP/1.1\r\nHost: worker.example.org\r\nOrigin: http://worker.example.org\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n\r\n",
]
STATUS_BOMBS: Final = {
    "a long host": b"GET / HTTP/1.1\r\nHost: " + b"1." * 7500 + b"\r\n\r\n",
    "a long address": b"GET / HTTP/1.1\r\nHost: [" + b"::1%" * 3900 + b"]\r\n\r\n",
    "a long origin": b"GET / HTTP/1.1\r\nHost: ::1\r\nOrigin: " + b"://" * 5000 + b"\r\n\r\n",
}

LOG_LINES: Final = [
    b"2026-11-30T05:43:26.999Z the executor says run\nTraceback\n",
    b'time=2026-11-30T05:43:26Z level=info msg="starts"\n',
]
LOG_BOMBS: Final = {
    "digits": b"2026-11-30T05:43:26." + b"9" * 400_000,
    "times": b"2026-11-30T05:43:26Z " * 20_000,
    "a long line": b"x" * 400_000,
}

BRIDGE_REQUESTS: Final = [
    b'\x00\n{"fetch":{"type":"HuggingFace","repository":"a/b","filenames":["c.json"]},"out_dir":"models"}',
    b'\x00\n{"type":"scheduler","peer":"%s","dataset":"digits"}' % _PEER.encode(),
    b'\x01\n{"send":{"type":"Peers","peers":["%s"],"strategy":"All"},"path":"a"}' % _PEER.encode(),
    b'\x02\x35\n{"resource":{"type":"peers","peers":[],"strategy":{"type":"All"}},"path":"b"}',
    b'\x03\n{"metrics":{"round":1,"metrics":{"loss":0.5}}}',
    b'\x03\n"update"',
]
BRIDGE_BOMBS: Final = {f"{path}: {name}": b"%c\n" % path + bomb for path in (0, 3) for name, bomb in JSON_BOMBS.items()}
_SPAN: Final = (
    b'{"name":"batch","span_id":"%s","parent_id":"%s","start_ns":1,"end_ns":2,"error":null,"attributes":{"samples":8}}'
    % (b"ab" * 8, b"cd" * 8)
)
_METRIC: Final = b'{"name":"hypha.job.transfer","value":8.0,"increase":true,"attributes":{"source":"hub"}}'
_TELEMETRY: Final = b'{"trace_id":"' + b"ab" * 16 + b'","spans":[%s],"metrics":[%s]}'
TELEMETRY: Final = [_TELEMETRY % (_SPAN, _METRIC)]
TELEMETRY_BOMBS: Final = {
    "many spans": _TELEMETRY % (b",".join([_SPAN] * 64), b""),
    "many metrics": _TELEMETRY % (b"", b",".join([_METRIC] * 256)),
    "many attributes": _TELEMETRY
    % (_SPAN.replace(b'"samples":8', b",".join(b'"a%d":0' % n for n in range(8000))), b""),
    "long texts": _TELEMETRY % (b",".join([_SPAN.replace(b"batch", b"\\u202e" * 300)] * 40), b""),
    "wrong spans": _TELEMETRY % (b",".join([b"0"] * 64), b",".join([b"0"] * 256)),
}
JOB_FILES: Final = [
    json.dumps(vector["json"]["DispatchJob"]["spec"]).encode()
    for vector in json.loads((_MESSAGES / "encoded.json").read_text())
    if vector["name"].startswith("api-request dispatch-job")
]
EVENTS: Final = [
    b'{"path":"incoming/a.0","size":1,"from_peer":"%s","sequence":0,"checksum":"sha256:00"}' % _PEER.encode(),
    b'[{"path":"a","from_peer":"b"}]',
]
EVENT_STREAMS: Final = [b": keepalive\n\nid: 3\ndata: " + EVENTS[0] + b"\n\n"]
EVENT_STREAM_BOMBS: Final = {
    "an endless line": b"data: " + b"x" * _MIB,
    "empty lines": b"\n" * 64 * _KIB,
    "empty fields": b"id\n" * 16 * _KIB,
    "empty data": b"id:\ndata:\n\n" * 16 * _KIB,
    "the shortest events": b'id:\ndata:{"from_peer":"","path":""}\n\n' * 2 * _KIB,
}
SAFETENSORS: Final = [
    lay_out([("w", "F32", (2, 2)), ("b", "F16", (3,))], {"job_id": "1", "round": "2"})[0][8:],
    lay_out([("", "U8", (64,))], {})[0][8:],
]
LABEL_BOMBS: Final = {
    **JSON_BOMBS,
    "many labels": b'{"__metadata__":{' + b",".join(b'"%d":""' % n for n in range(10_000)) + b"}}",
    "a long label": b'{"__metadata__":{"job_id":"' + b"x" * 100_000 + b'"}}',
    "many tensors with labels": b"{"
    + b",".join(b'"%d":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}' % n for n in range(2000))
    + b',"__metadata__":{"job_id":"1"}}',
    "many dimensions": b'{"a":{"dtype":"F32","shape":[' + b"1," * 50_000 + b'1],"data_offsets":[0,4]}}',
}
