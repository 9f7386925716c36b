import logging
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.security.tls.transport import TLSTransport as SelfSignedTransport
from trio.testing import MockClock, memory_stream_pair

from hypha_devnet.certs import Credential, create_crl, create_node, create_organisation, create_root
from hypha_network import identity as identity_module
from hypha_network.errors import ConnectionBroken, HandshakeError
from hypha_network.identity import Identity
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.wire import tls as tls_module
from hypha_network.wire.addresses import Address
from hypha_network.wire.tls import SecureConnection, TlsTransport, keep_valid
from hypha_network.wire.transport import RawConnection
from support.certs import Pki, ecdsa_node, identity_of, impostor
from support.networks import DEADLINE_S

pytestmark = pytest.mark.anyio
Outcome = SecureConnection | Exception
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class ClockAhead(datetime):
    """A clock that is ahead of time."""

    ahead = timedelta()

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.now(tz) + cls.ahead


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


@pytest.fixture(autouse=True)
def _lines_are_not_suppressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_module, "_handshake_log", RateLimitedLogger(tls_module.logger))


@pytest.fixture
def pki() -> Pki:
    return Pki()


def raw_pair() -> tuple[RawConnection, RawConnection]:
    left, right = memory_stream_pair()
    return (
        RawConnection(left, Address("ip4", "192.0.2.2", 4001), is_initiator=True),
        RawConnection(right, Address("ip4", "192.0.2.1", 50000), is_initiator=False),
    )


class Libp2pTransport:
    """The security transport of libp2p, which uses self-signed certificates, with the interface of TlsTransport."""

    def __init__(self) -> None:
        self._inner = SelfSignedTransport(create_new_key_pair())

    async def secure(self, raw: Any, expected: Any = None) -> Any:
        return await (
            self._inner.secure_outbound(raw, expected) if raw.is_initiator else self._inner.secure_inbound(raw)
        )


async def outcome_of(secure: Callable[[], Awaitable[SecureConnection]]) -> Outcome:
    try:
        return await secure()
    except Exception as error:
        return error


async def meet(
    dialler: Any, acceptor: Any, *, expected: str | None = None, timeout_s: float = 10.0
) -> tuple[Outcome, Outcome]:
    """Let two identities (or transports) shake hands; return the outcomes of the dialler and the acceptor."""
    client, server = (
        peer if hasattr(peer, "secure") else TlsTransport(peer, handshake_timeout_s=timeout_s)
        for peer in (dialler, acceptor)
    )
    near, far = raw_pair()
    found: dict[str, Outcome] = {}

    async def dial() -> None:
        found["dialler"] = await outcome_of(partial(client.secure, near, expected))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        found["acceptor"] = await outcome_of(partial(server.secure, far))
    return found["dialler"], found["acceptor"]


async def connect(dialler: Any, acceptor: Any) -> tuple[SecureConnection, SecureConnection]:
    client, server = await meet(dialler, acceptor)
    assert isinstance(client, SecureConnection), client
    assert isinstance(server, SecureConnection), server
    return client, server


def refused(outcome: Outcome, reason: str) -> bool:
    return isinstance(outcome, HandshakeError) and reason in str(outcome)


async def what_the_refused_learns(connection: Outcome) -> str:
    """TLS 1.3 lets the client finish before the server has looked at it: the refusal shows at the first read."""
    assert isinstance(connection, SecureConnection)
    try:
        assert not await connection.read_some()
    except ConnectionBroken as error:
        return str(error)
    return "the end of the connection"


UTF8_STRING, PRINTABLE_STRING = 0x0C, 0x13


def named(pki: Pki, text: bytes, kind: int = UTF8_STRING) -> Any:
    """A node whose common name is these bytes, signed as they are; not every X.509 parser takes it."""
    node = pki.node("n" * len(text))
    old = node.certificate.tbs_certificate_bytes
    new = old.replace(bytes([UTF8_STRING, len(text)]) + b"n" * len(text), bytes([kind, len(text)]) + text)
    der = node.certificate.public_bytes(Encoding.DER).replace(old, new)[: -len(node.certificate.signature)]
    pem = ssl.DER_cert_to_PEM_cert(der + pki.organisation.key.sign(new)).encode()
    return SimpleNamespace(key_pem=node.key_pem, cert_pem=pem + pki.organisation.cert_pem)


class TestAccepted:
    async def test_both_sides_know_each_other(self, pki: Pki) -> None:
        worker, gateway = pki.identity("worker"), pki.identity("gateway")
        client, server = await connect(worker, gateway)
        assert client.peer_id == gateway.peer_id
        assert server.peer_id == worker.peer_id
        assert (client.is_initiator, server.is_initiator) == (True, False)

    async def test_the_peer_that_was_dialled(self, pki: Pki) -> None:
        gateway = pki.identity("gateway")
        client, _ = await meet(pki.identity("worker"), gateway, expected=gateway.peer_id)
        assert isinstance(client, SecureConnection)

    async def test_peers_of_another_organisation_of_the_same_root(self, pki: Pki) -> None:
        globex = create_organisation(pki.root, "Globex")
        await connect(pki.identity("worker"), identity_of(create_node(globex, "gateway")))

    async def test_peers_that_trust_only_the_organisation(self, pki: Pki) -> None:
        trust = pki.organisation.certificate.public_bytes(Encoding.PEM)
        await connect(identity_of(pki.node("a"), trust=trust), identity_of(pki.node("b"), trust=trust))

    async def test_peers_that_lists_do_not_name(self, pki: Pki) -> None:
        crls = pki.crls(pki.node("somebody else"))
        await connect(pki.identity("a", crls=crls), pki.identity("b", crls=crls))

    async def test_lists_past_their_next_update_still_count(self, pki: Pki) -> None:
        past = datetime.now(UTC) - timedelta(hours=1)
        crls = create_crl(pki.root, next_update=past) + create_crl(pki.organisation, next_update=past)
        await connect(pki.identity("a", crls=crls), pki.identity("b", crls=crls))


class TestRefused:
    async def test_no_certificate(self, pki: Pki) -> None:
        client, server = await meet(impostor(None), pki.identity("gateway"))
        assert refused(server, "it presented no certificate")
        assert "requires a certificate" in await what_the_refused_learns(client)

    async def test_a_certificate_of_another_network(self, pki: Pki) -> None:
        stranger = impostor(Pki().node("stranger"))
        client, server = await meet(stranger, pki.identity("gateway"))
        assert refused(server, "its certificate is refused")
        assert "trust bundle does not lead to our certificate" in await what_the_refused_learns(client)
        client, _ = await meet(pki.identity("worker"), stranger)
        assert refused(client, "its certificate is refused")

    async def test_two_honest_peers_of_different_networks(self, pki: Pki) -> None:
        client, server = await meet(pki.identity("worker"), Pki().identity("gateway"))
        assert refused(client, "its certificate is refused")
        assert refused(server, "its trust bundle does not lead to our certificate")

    async def test_an_expired_certificate(self, pki: Pki) -> None:
        now = datetime.now(UTC)
        times = {"not_before": now - timedelta(9), "not_after": now - timedelta(1)}
        expired = impostor(create_node(pki.organisation, "late", **times))
        _, server = await meet(expired, pki.identity("gateway"))
        client, _ = await meet(pki.identity("worker"), expired)
        assert refused(server, "certificate has expired")
        assert refused(client, "certificate has expired")

    async def test_a_revoked_certificate_in_both_directions(self, pki: Pki) -> None:
        revoked = pki.node("revoked")
        careful = pki.identity("careful", crls=pki.crls(revoked))
        _, server = await meet(identity_of(revoked), careful)
        client, _ = await meet(careful, identity_of(revoked))
        assert refused(server, "was revoked by")
        assert refused(client, "was revoked by")

    async def test_a_node_of_a_revoked_organisation(self, pki: Pki) -> None:
        careful = identity_of(
            create_node(create_organisation(pki.root, "Globex"), "careful"), crls=pki.crls(pki.organisation)
        )
        for outcome in (
            (await meet(pki.identity("worker"), careful))[1],
            (await meet(careful, pki.identity("worker")))[0],
        ):
            assert refused(outcome, "O=Acme")
            assert refused(outcome, "was revoked by CN=Hypha Devnet Root CA")

    @pytest.mark.parametrize("missing", ["root", "organisation"])
    async def test_a_peer_whose_issuer_has_no_list_while_others_have(self, pki: Pki, missing: str) -> None:
        there = pki.organisation if missing == "root" else pki.root
        _, server = await meet(pki.identity("worker"), pki.identity("careful", crls=create_crl(there)))
        assert refused(server, "none from")

    async def test_a_peer_whose_issuers_list_was_signed_by_someone_else(self, pki: Pki) -> None:
        forged = create_crl(Credential(pki.organisation.certificate, pki.root.key))
        _, server = await meet(pki.identity("worker"), pki.identity("careful", crls=create_crl(pki.root) + forged))
        assert refused(server, "was not signed by its key")

    async def test_a_key_that_is_not_ed25519(self, pki: Pki) -> None:
        odd = impostor(ecdsa_node(pki))
        _, server = await meet(odd, pki.identity("gateway"))
        client, _ = await meet(pki.identity("worker"), odd)
        assert refused(server, "no Ed25519 key")
        assert refused(client, "no Ed25519 key")

    async def test_another_peer_than_the_one_dialled(self, pki: Pki) -> None:
        dialled, answering = pki.identity("dialled"), pki.identity("answering")
        client, _ = await meet(pki.identity("worker"), answering, expected=dialled.peer_id)
        assert refused(client, f"dialled {dialled.peer_id}, but {answering.peer_id} answered")

    async def test_tls_1_2(self, pki: Pki) -> None:
        old = impostor(pki.node("old"), maximum_version=ssl.TLSVersion.TLSv1_2)
        client, server = await meet(old, pki.identity("gateway"))
        assert refused(server, "does not speak TLS 1.3")
        assert isinstance(client, HandshakeError)
        client, _ = await meet(pki.identity("worker"), old)
        assert refused(client, "does not speak TLS 1.3")

    async def test_a_certificate_for_clients_only_when_dialled(self, pki: Pki) -> None:
        node = pki.node("client")
        builder = (
            x509.CertificateBuilder(node.certificate.issuer, node.certificate.subject, node.key.public_key(), 7)
            .not_valid_before(datetime.now(UTC) - timedelta(1))
            .not_valid_after(datetime.now(UTC) + timedelta(1))
            .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        )
        client_only = impostor(Credential(builder.sign(pki.organisation.key, None), node.key, node.issuers))
        client, _ = await meet(pki.identity("worker"), client_only)
        assert refused(client, "its certificate is refused")

    async def test_a_node_that_signs_certificates_itself(self, pki: Pki) -> None:
        node = pki.node("node")
        _, server = await meet(impostor(create_node(node, "child")), pki.identity("gateway"))
        assert refused(server, "its certificate is refused")

    async def test_a_peer_vouched_for_by_a_node_in_the_trust_bundle(self, pki: Pki) -> None:
        other_network = Pki().node("guest")
        trust = pki.root.trust_pem + other_network.certificate.public_bytes(Encoding.PEM)
        _, server = await meet(impostor(other_network), identity_of(pki.node("gateway"), trust=trust))
        assert refused(server, "its certificate is refused")

    async def test_a_certificate_whose_name_is_not_text(self, pki: Pki) -> None:
        odd = impostor(named(pki, b"\xff\xfe", PRINTABLE_STRING))
        careful = pki.identity("careful", crls=create_crl(pki.root))  # what it says about the peer would name it
        _, server = await meet(odd, careful)
        assert refused(server, "its certificate cannot be read")

    async def test_a_name_with_a_line_break_that_would_forge_a_log_line(
        self, pki: Pki, caplog: pytest.LogCaptureFixture
    ) -> None:
        odd = impostor(named(pki, b"a\r\nb"))
        await meet(odd, pki.identity("careful", crls=create_crl(pki.root)))
        assert r"CN=a\r\nb" in caplog.text

    async def test_a_self_signed_libp2p_peer(self, pki: Pki) -> None:
        _, server = await meet(Libp2pTransport(), pki.identity("gateway"))
        assert refused(server, "its certificate is refused")
        client, _ = await meet(pki.identity("worker"), Libp2pTransport())
        assert isinstance(client, HandshakeError)

    async def test_a_peer_that_sends_nothing(self, pki: Pki) -> None:
        for near, far in raw_pair(), reversed(raw_pair()):
            started = trio.current_time()
            transport = TlsTransport(pki.identity("gateway"), handshake_timeout_s=7.0)
            with pytest.raises(HandshakeError, match="not completed within 7 s"):
                await transport.secure(near)
            assert trio.current_time() - started == pytest.approx(7.0)
            while await far.read(65536):  # what it got, then the end: the connection was closed
                pass

    async def test_a_peer_that_stalls_halfway(self, pki: Pki) -> None:
        near, far = raw_pair()
        transport = TlsTransport(pki.identity("gateway"))
        hello = ssl.MemoryBIO()
        with pytest.raises(ssl.SSLWantReadError):
            pki.identity("worker").client_context.wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
        await near.write(hello.read())
        with pytest.raises(HandshakeError, match="not completed within 10 s"):
            await transport.secure(far)

    @pytest.mark.parametrize(
        "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(70000), b"\x00" * 100]
    )
    async def test_a_peer_that_does_not_speak_tls(self, pki: Pki, garbage: bytes) -> None:
        near, far = raw_pair()
        await near.write(garbage)
        with pytest.raises(HandshakeError):
            await TlsTransport(pki.identity("gateway")).secure(far)

    async def test_a_peer_that_closes_the_connection(self, pki: Pki) -> None:
        near, far = raw_pair()
        await near.close()
        with pytest.raises(HandshakeError, match="closed by the peer"):
            await TlsTransport(pki.identity("gateway")).secure(far)

    async def test_every_refusal_is_one_line_in_the_log(self, pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
        await meet(impostor(None), pki.identity("gateway"))
        [record] = [r for r in caplog.records if r.name == "hypha_network.wire.tls" and "handshake" in r.message]
        assert record.levelno == logging.WARNING
        assert "192.0.2.1:50000" in record.message


class TestConnection:
    async def test_data_of_any_size_arrives_in_order(self, pki: Pki) -> None:
        client, server = await connect(pki.identity("a"), pki.identity("b"))
        sent = [bytes([n % 251]) * n for n in (1, 16_384, 16_385, 1_000_000, 3_000_000)]
        received = bytearray()

        async def send() -> None:
            for data in sent:
                await client.write(data)
            await client.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while data := await server.read_some():
                received += data
        assert received == b"".join(sent)

    async def test_many_records_are_read_at_once(self, pki: Pki) -> None:
        client, server = await connect(pki.identity("a"), pki.identity("b"))
        for _ in range(8):
            await client.write(bytes(8192))
        assert len(await server.read_some()) > 8192

    async def test_later_reads_do_not_change_data_that_was_returned(self, pki: Pki) -> None:
        client, server = await connect(pki.identity("a"), pki.identity("b"))
        await client.write(b"first")
        first = await server.read_some()
        await client.write(b"other")
        await server.read_some()
        assert bytes(first) == b"first"

    async def test_small_reads_leave_the_rest(self, pki: Pki) -> None:
        client, server = await connect(pki.identity("a"), pki.identity("b"))
        await client.write(b"abcdef")
        assert await server.read_exactly(2) == b"ab"
        assert await server.read_exactly(3) == b"cde"
        assert bytes(await server.read_some()) == b"f"

    async def test_two_writers_do_not_mix_their_records(self, pki: Pki) -> None:
        client, server = await connect(pki.identity("a"), pki.identity("b"))
        async with trio.open_nursery() as nursery:
            for letter in b"x", b"y":
                nursery.start_soon(client.write, letter * 500_000)
        received = b""
        while len(received) < 1_000_000:
            received += bytes(await server.read_some())
        assert received.count(b"x") == received.count(b"y") == 500_000

    async def test_data_sent_with_the_end_arrives(self, pki: Pki) -> None:
        client, server = await connect(pki.identity("a"), pki.identity("b"))
        await client.write(b"last words")
        await client.close()
        assert bytes(await server.read_some()) == b"last words"
        assert bytes(await server.read_some()) == b""
        with pytest.raises(ConnectionBroken):
            await server.read_exactly(1)

    async def test_nothing_is_written_after_the_end(self, pki: Pki) -> None:
        client, _ = await connect(pki.identity("a"), pki.identity("b"))
        await client.close()
        with pytest.raises(ConnectionBroken):
            await client.write(b"more")

    async def test_a_cancelled_write_breaks_the_connection_rather_than_its_records(self, pki: Pki) -> None:
        client, _ = await connect(pki.identity("a"), pki.identity("b"))
        client._raw._stream.send_stream.send_all_hook = trio.sleep_forever
        with trio.move_on_after(1) as scope:
            await client.write(b"half")
        assert scope.cancelled_caught
        with pytest.raises(ConnectionBroken):
            await client.write(b"rest")

    async def test_a_changed_byte_ends_the_connection_with_an_error(self, pki: Pki) -> None:
        client, server = await connect(pki.identity("a"), pki.identity("b"))
        encrypted = bytearray(client._tls.encrypt(memoryview(b"data")))
        encrypted[-1] ^= 1
        await client._raw.write(bytes(encrypted))
        with pytest.raises(ConnectionBroken, match="failed"):
            await server.read_some()


class TestReloading:
    async def run(self, transport: TlsTransport, change: Callable[[], object]) -> None:
        """Follow the files for a while, in which they change."""
        with trio.move_on_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_valid, transport)
                await trio.sleep(7)
                change()

    def gateway(self, pki: Pki, directory: Path) -> tuple[TlsTransport, Path]:
        files = pki.files("gateway", directory)
        crls = directory / "crls.pem"
        crls.write_bytes(pki.crls())
        return TlsTransport(Identity.load(files.cert, files.key, files.trust, crls)), crls

    async def test_a_peer_on_a_new_list_is_refused(self, pki: Pki, tmp_path: Path) -> None:
        gateway, crls = self.gateway(pki, tmp_path)
        worker = pki.node("worker")
        await connect(identity_of(worker), gateway)
        await self.run(gateway, lambda: crls.write_bytes(pki.crls(worker)))
        _, server = await meet(identity_of(worker), gateway)
        assert refused(server, "was revoked by")

    async def test_a_new_list_closes_the_connections_of_the_peers_it_names_and_no_others(
        self, pki: Pki, tmp_path: Path
    ) -> None:
        gateway, crls = self.gateway(pki, tmp_path)
        revoked, honest = pki.node("revoked"), pki.identity("honest")
        bad, ours = await connect(identity_of(revoked), gateway)
        good, _theirs = await connect(honest, gateway)
        await self.run(gateway, lambda: crls.write_bytes(pki.crls(revoked)))
        assert bytes(await bad.read_some()) == b""
        with pytest.raises(ConnectionBroken):
            await ours.write(b"x")
        await good.write(b"still here")
        assert bytes(await _theirs.read_some()) == b"still here"

    async def test_a_broken_file_keeps_the_old_identity_and_is_logged_with_its_cause(
        self, pki: Pki, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        gateway, crls = self.gateway(pki, tmp_path)
        before = gateway.identity
        await self.run(gateway, lambda: crls.write_bytes(b"not a list"))
        assert gateway.identity is before
        assert "crls.pem" in caplog.text
        await connect(pki.identity("worker"), gateway)

    async def test_a_file_that_is_repaired_later_is_used(self, pki: Pki, tmp_path: Path) -> None:
        gateway, crls = self.gateway(pki, tmp_path)
        worker = pki.node("worker")
        await self.run(gateway, lambda: crls.write_bytes(b""))
        await self.run(gateway, lambda: crls.write_bytes(pki.crls(worker)))
        _, server = await meet(identity_of(worker), gateway)
        assert refused(server, "was revoked by")

    async def test_the_identity_of_another_peer_is_not_used(
        self, pki: Pki, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        gateway, _ = self.gateway(pki, tmp_path)
        before = gateway.identity.peer_id
        await self.run(gateway, lambda: pki.files("gateway", tmp_path))
        assert gateway.identity.peer_id == before
        assert "cannot change its peer id" in caplog.text

    async def test_an_authority_that_leaves_the_trust_bundle_takes_its_connections_along(
        self, pki: Pki, tmp_path: Path
    ) -> None:
        files = pki.files("gateway", tmp_path)
        before, other = files.trust.read_bytes(), create_organisation(create_root(), "Other")
        both = before + other.trust_pem
        files.trust.write_bytes(both)
        transport = TlsTransport(Identity.load(files.cert, files.key, files.trust))
        bad, _ours = await connect(identity_of(create_node(other, "foreign"), trust=both), transport)
        good, theirs = await connect(pki.identity("honest"), transport)
        await self.run(transport, lambda: files.trust.write_bytes(before))
        with trio.fail_after(DEADLINE_S):
            assert bytes(await bad.read_some()) == b""
        await good.write(b"still here")
        assert bytes(await theirs.read_some()) == b"still here"

    @pytest.mark.parametrize(
        ("expiring", "passes"),
        [("the peer", HOUR), ("the gateway", HOUR), ("the peer's organisation", 3000 * DAY), ("nobody", HOUR)],
    )
    async def test_a_certificate_that_expires_ends_its_connections(
        self, pki: Pki, monkeypatch: pytest.MonkeyPatch, expiring: str, passes: timedelta
    ) -> None:
        soon, late = datetime.now(UTC) + HOUR / 2, datetime.now(UTC) + 3200 * DAY
        peer = create_node(pki.organisation, "peer", not_after=soon if expiring == "the peer" else late)
        ours = create_node(pki.organisation, "gateway", not_after=soon if expiring == "the gateway" else late)
        gateway = TlsTransport(identity_of(ours))
        near, _far = await connect(identity_of(peer), gateway)

        def pass_time() -> None:
            monkeypatch.setattr(identity_module, "datetime", ClockAhead)
            monkeypatch.setattr(ClockAhead, "ahead", passes)

        await self.run(gateway, pass_time)
        with trio.move_on_after(1) as waiting:
            assert bytes(await near.read_some()) == b""
        assert waiting.cancelled_caught == (expiring == "nobody")
