"""Nodes behind real NATs connect directly where that is possible, and say so where it is not."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from support.certs import Pki
from support.nat_lab import KEPT, QUIC, RANDOM, TCP, Laboratory, Place, laboratory, missing

BULK_BYTES = 8 * 1024 * 1024

pytestmark = pytest.mark.anyio


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Laboratory]:
    if reason := missing():
        pytest.skip(f"no laboratory: {reason}")
    with laboratory(Pki(), tmp_path) as lab:
        yield lab


async def push(
    lab: Laboratory,
    source: Place,
    target: Place,
    *,
    bulk: tuple[bool, ...] = (False,),
    listen: Sequence[str] = (TCP,),
) -> tuple[dict[str, object], dict[str, object]]:
    """Push from one place to another; return what the source says, and what the target received if anything.

    `bulk` holds for each gateway whether it relays bulk data.
    """
    gateways = ",".join(lab.gateway(bulk=relays, listen=listen) for relays in bulk)
    receiver = lab.node(target, "receiver", gateways, "receive")
    sender = lab.node(source, "sender", gateways, "push", str(BULK_BYTES))
    sender.tell(str((await receiver.line())["peer_id"]))
    sent = await sender.line()
    return sent, ({} if "error" in sent else await receiver.line())


@pytest.mark.parametrize("listen", [(TCP,), (QUIC,), (QUIC, TCP)], ids=["tcp", "quic", "both"])
async def test_nodes_behind_nats_that_keep_ports_connect_directly_and_push(
    lab: Laboratory, listen: Sequence[str]
) -> None:
    sent, received = await push(lab, lab.behind_nat(KEPT), lab.behind_nat(KEPT), listen=listen)
    assert sent["reach"] == "punchable"
    assert received == {"way": "direct", "bytes": BULK_BYTES, "sha256": sent.get("sha256")}, sent


@pytest.mark.parametrize("listen", [(TCP,), (QUIC,)], ids=["tcp", "quic"])
async def test_nodes_behind_nats_with_random_ports_refuse_bulk_data_and_answer_requests(
    lab: Laboratory, listen: Sequence[str]
) -> None:
    sent, _ = await push(lab, lab.behind_nat(RANDOM), lab.behind_nat(RANDOM), listen=listen)
    assert (sent.get("error"), sent.get("way"), sent.get("healthy")) == ("OnlyRelayed", "relayed", True), sent
    assert sent["reach"] == "limited_relay"


@pytest.mark.parametrize("bulk", [(True,), (False, True)], ids=["alone", "beside a limited one"])
async def test_a_gateway_that_relays_bulk_data_serves_nodes_behind_nats_with_random_ports(
    lab: Laboratory, bulk: tuple[bool, ...]
) -> None:
    sent, received = await push(lab, lab.behind_nat(RANDOM), lab.behind_nat(RANDOM), bulk=bulk)
    assert sent["reach"] == "bulk_relay"
    assert received == {"way": "relayed", "bytes": BULK_BYTES, "sha256": sent.get("sha256")}, sent


@pytest.mark.parametrize("hidden", ["sender", "receiver"])
async def test_a_public_node_and_one_behind_a_nat_connect_directly(lab: Laboratory, hidden: str) -> None:
    inside, public = lab.behind_nat(RANDOM), lab.public()
    source, target = (inside, public) if hidden == "sender" else (public, inside)
    sent, received = await push(lab, source, target)
    assert sent["reach"] == ("limited_relay" if hidden == "sender" else "public")
    assert received == {"way": "direct", "bytes": BULK_BYTES, "sha256": sent.get("sha256")}, sent
