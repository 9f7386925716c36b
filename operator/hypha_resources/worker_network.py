"""The part of a HyphaWorker that says how it reaches the network, and how peers reach it."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from hypha_resources.addresses import Cidr, ExternalAddress, ExternalHost, GatewayAddress, ListenAddress
from hypha_resources.common import Schema, rules


def _number_of(address: str) -> str:
    """Return the expression in CEL for the port number at the end of a listen address."""
    return f"{address}.replace('/quic-v1', '').find('[0-9]+$')"


class Expose(Schema):
    """How peers outside the cluster reach the worker directly."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.type == 'LoadBalancer' || !has(self.loadBalancerClass)",
                "loadBalancerClass is of Services of type LoadBalancer alone",
            ),
            (
                (
                    "self.type != 'HostPort' || !(has(self.annotations) || has(self.ipFamilyPolicy)"
                    " || has(self.externalTrafficPolicy))"
                ),
                "type HostPort makes no Service for annotations, ipFamilyPolicy and externalTrafficPolicy",
            ),
            (
                "self.type == 'LoadBalancer' || !has(self.sourceRanges)",
                "sourceRanges are of Services of type LoadBalancer alone",
            ),
            (
                "self.type != 'LoadBalancer' || !has(self.hosts)",
                "a load balancer has addresses of its own: remove hosts",
            ),
        )
    )

    type: Literal["NodePort", "LoadBalancer", "HostPort"] = Field(
        description="Peers connect directly in this way, so that bulk data does not pass through a gateway."
    )
    port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        default=None,
        description="The port that peers connect to, over TCP and UDP alike. Default: the cluster chooses it; for "
        "HostPort the listen port.",
    )
    hosts: Annotated[list[ExternalHost], Field(max_length=16)] = Field(
        default=[],
        description="IP addresses or names at which peers reach the nodes of the cluster, for NodePort and HostPort. "
        "Default: the addresses of the node of the controller's pod, of which peers outside may not reach any.",
    )
    ip_family_policy: Literal["SingleStack", "PreferDualStack", "RequireDualStack"] | None = Field(
        default=None,
        description="Address families of the Service. Default: those of listenAddresses that the cluster has.",
    )
    external_traffic_policy: Literal["Cluster", "Local"] | None = Field(
        default=None,
        description="Local keeps the addresses of peers and needs no second hop, but only the node of the controller's "
        "pod then answers. Default: Cluster.",
    )
    source_ranges: Annotated[list[Cidr], Field(max_length=64)] = Field(
        default=[], description="Networks whose peers the load balancer lets through. Default: all."
    )
    load_balancer_class: Annotated[str, Field(min_length=1, max_length=317)] | None = Field(
        default=None,
        description="Class of the load balancer, such as service.k8s.aws/nlb. It cannot be changed; remove expose "
        "first. Default: the cluster's.",
    )
    annotations: dict[str, str] = Field(
        default={},
        description="Annotations of the Service for your cloud provider, such as "
        "service.beta.kubernetes.io/aws-load-balancer-scheme: internet-facing.",
    )


class NetworkSpec(Schema):
    """How the worker reaches the Hypha network, and how peers reach the worker."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "!has(self.expose) || self.expose.type != 'HostPort' || !has(self.listenAddresses) "
                    f"|| self.listenAddresses.all(address, {_number_of('address')} "
                    f"== {_number_of('self.listenAddresses[0]')})"
                ),
                "expose of type HostPort needs the same port number in all listenAddresses",
            ),
            (
                (
                    "(has(self.relayCircuit) ? self.relayCircuit : true) || has(self.expose) "
                    "|| (has(self.externalAddresses) && self.externalAddresses.size() > 0)"
                ),
                "nobody could reach this worker: set relayCircuit, expose or externalAddresses",
            ),
        )
    )

    gateways: Annotated[list[GatewayAddress], Field(min_length=1, max_length=64)] = Field(
        description="Gateways, such as /dns4/gateway.example.org/tcp/4001 or /ip4/203.0.113.50/udp/4001/quic-v1, with "
        "or without /p2p/<peer id>, or /dnsaddr/gateway.example.org, whose addresses stand in TXT records. One must be "
        "reachable; more add redundancy."
    )
    listen_addresses: Annotated[list[ListenAddress], Field(min_length=1, max_length=16)] = Field(
        default=["/ip4/0.0.0.0/tcp/4001"],
        description="Addresses at which the pod accepts peers: over TCP, and over QUIC, such as "
        "/ip4/0.0.0.0/udp/4001/quic-v1. A TCP port must not be 8443, which is the connector's, 9464, which "
        "serves metrics, or 8081, which serves the status page.",
    )
    external_addresses: Annotated[list[ExternalAddress], Field(max_length=16)] = Field(
        default=[], description="Addresses at which peers outside the cluster reach the worker. Default: from expose."
    )
    exclude_cidr: Annotated[list[Cidr], Field(max_length=256)] | None = Field(
        default=None,
        description="Networks in which the worker ignores addresses of peers: [] if the Hypha network uses private "
        "addresses. Default: all reserved networks.",
    )
    relay_circuit: bool = Field(
        default=True,
        description="Accept connections through the gateways' relays. If false, set expose or externalAddresses.",
    )
    expose: Expose | None = None
