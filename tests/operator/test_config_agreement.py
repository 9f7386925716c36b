"""The node accepts every setting that a HyphaWorker accepts, because a node that does not start loses its jobs."""

from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hypha_operator.workers.node_config import config_toml, node_config
from hypha_resources.worker import HyphaWorkerSpec
from hypha_worker.config_file import load
from support.resources import GATEWAY, PEER, worker_manifest

SHA256_PEER = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"
PEERS = (PEER, SHA256_PEER, PEER[:-1], "1" * 50, "me", "")
HOSTS = ("ip4/1.2.3.4", "ip4/1.2.3", "ip4/::1", "ip6/::1", "ip6/1.2.3.4", "ip6/1::g", "dns/p2p", "dns4/a.b-c", "dns6/ä")
UDP_PORTS = ("/udp/4001/quic-v1", "/udp/8443/quic-v1", "/udp/0/quic-v1", "/udp/4001")
PORTS = ("/tcp/1", "/tcp/65535", "/tcp/65536", "/tcp/0", "/tcp/8443", "/tcp/x", *UDP_PORTS, ":4001")
TAILS = ("", "/", "\n", "/p2p-circuit", *(f"/p2p/{peer}{rest}" for peer in PEERS for rest in ("", "/p2p-circuit")))
ADDRESSES = tuple(map("".join, product("/", HOSTS, PORTS, (*TAILS, f"/p2p/{PEER}/p2p-circuit/p2p/{PEER}"))))
CIDRS = ("10.0.0.0/8", "10.0.0/8", "10.0.0.1/8", "10.0.0.0/33", "fc00::/7", "fc00::/129", "10.0.0.0", "::1/08", "a/8")

texts = st.sampled_from(["", "a", 'say "a b"', "x.y/z=\n", "ä\x7f\\", *PEERS])
numbers = st.floats(allow_nan=False, allow_infinity=False)
quantities = st.sampled_from(["1", "1n", "0", "0.0", "500m", "4Gi", "1e-9", "8E", "-1", 2])
minimums = st.fixed_dictionaries({}, optional=dict.fromkeys(("cpu", "memory", "storage"), quantities))
tables = st.fixed_dictionaries(
    {},
    optional={
        "offer": st.fixed_dictionaries({}, optional={"price": numbers, "floor": numbers, "minimum": minimums}),
        "selection": st.fixed_dictionaries(
            {},
            optional={
                "schedulers": st.dictionaries(st.sampled_from(PEERS), numbers, max_size=1),
                "executors": st.dictionaries(texts, numbers, max_size=2),
            },
        ),
        "telemetry": st.fixed_dictionaries(
            {"endpoint": st.just("http://otel:4318")},
            optional={"attributes": st.dictionaries(texts, texts, max_size=2), "sampleRatio": numbers},
        ),
    },
)


def accepted(directory: Path, **fields: Any) -> bool:
    """Return whether a HyphaWorker accepts these fields. If so, assert that the node accepts the operator's file.

    Raises:
        ConfigError: the node refuses the file.
    """
    manifest = worker_manifest("ns", **fields)
    manifest["metadata"]["uid"] = "uid-1"
    try:
        spec = HyphaWorkerSpec.model_validate(manifest["spec"])
    except ValidationError:
        return False
    addresses = spec.network.external_addresses
    file = directory / "worker.toml"
    file.write_text(config_toml(node_config(manifest, spec, addresses=addresses, peer_id=PEER)))
    config = load(file, {}).config
    assert (config.gateway_addresses, config.listen_addresses) == (spec.network.gateways, spec.network.listen_addresses)
    offer = spec.offer.model_dump(by_alias=False) | {"minimum": spec.offer.minimum.amounts}
    assert config.offer.model_dump() == offer
    assert config.selection.model_dump(mode="json") == spec.selection.model_dump(by_alias=False)
    if spec.telemetry is not None:
        assert config.telemetry_attributes.items() >= spec.telemetry.attributes.items()
    return True


@pytest.mark.parametrize(
    ("field", "values", "good"),
    [
        (
            "gateways",
            ADDRESSES,
            (
                f"/ip6/::1/tcp/65535/p2p/{PEER}",
                "/ip4/1.2.3.4/udp/4001/quic-v1",
                f"/dns/p2p/tcp/1/p2p/{SHA256_PEER}",
            ),
        ),
        (
            "listenAddresses",
            ADDRESSES,
            (
                "/ip4/1.2.3.4/tcp/1",
                "/ip6/::1/tcp/65535",
                "/ip4/1.2.3.4/udp/4001/quic-v1",
                "/ip6/::1/udp/8443/quic-v1",
            ),
        ),
        (
            "externalAddresses",
            ADDRESSES,
            (
                f"/dns4/a.b-c/tcp/8443/p2p/{PEER}/p2p-circuit/p2p/{PEER}",
                f"/dns4/a.b-c/udp/4001/quic-v1/p2p/{PEER}/p2p-circuit/p2p/{PEER}",
            ),
        ),
        ("excludeCidr", CIDRS, ("10.0.0.0/8", "10.0.0.1/8", "fc00::/7")),
    ],
)
def test_the_node_accepts_every_address_that_a_worker_accepts(tmp_path, field, values, good):
    named = {value for value in values if accepted(tmp_path, network={"gateways": [GATEWAY], field: [value]})}
    assert named >= set(good)


@given(tables)
def test_the_node_reads_the_offer_and_selection_that_a_worker_accepts(fields: dict[str, Any]):
    with TemporaryDirectory() as directory:
        accepted(Path(directory), **fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"network": {"gateways": ["/dns4/gateway.example.org:4001"]}}, "write /dns4/host.example.org/tcp/4001"),
        ({"network": {"gateways": [f"{GATEWAY}/p2p/{PEER[:-1]}"]}}, "with or without /p2p/<peer id>"),
        ({"network": {"gateways": [GATEWAY], "excludeCidr": ["10.0.0/8"]}}, "write a network as 10.0.0.0/8"),
        ({"network": {"gateways": [GATEWAY], "listenAddresses": ["/ip4/0.0.0.0/tcp/70000"]}}, "write /ip4/0.0.0.0/tcp"),
        ({"network": {"gateways": [GATEWAY], "listenAddresses": ["/ip4/0.0.0.0/tcp/8443"]}}, "not TCP port 8443"),
        ({"selection": {"schedulers": {"alice": 2}}}, "write peer ids"),
    ],
)
def test_a_worker_refuses_what_the_node_would_refuse_and_names_the_remedy(fields, words):
    with pytest.raises(ValidationError, match=words):
        HyphaWorkerSpec.model_validate(worker_manifest("ns", **fields)["spec"])
