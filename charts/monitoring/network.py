"""The dashboard of the network: gateways, peers and traffic of each node."""

from typing import Final

from charts.monitoring.panels import NODE, Dashboard, Panel, most, quantiles, rate, total

NETWORK: Final = Dashboard(
    "hypha-network",
    "Hypha network",
    (
        Panel(
            "Gateways",
            "Gateways to which the node is connected, and those through which peers reach it.",
            "short",
            (
                total("hypha_network_gateways", suffix="connected"),
                total("hypha_network_reservations", suffix="reservations"),
            ),
        ),
        Panel(
            "Peers",
            "Connected peers, and those among them that deliver requests.",
            "short",
            (
                total("hypha_network_peers", suffix="connected"),
                total("hypha_network_subscribers", suffix="of the topic"),
            ),
        ),
        Panel(
            "Connections",
            "By the side that opened them, and by their path.",
            "short",
            (total("hypha_network_connections", "initiator", "path"),),
        ),
        Panel(
            "Round trip",
            "The latest round trip with each peer; of `other` the longest.",
            "s",
            (most("hypha_network_round_trip_seconds", "peer"),),
        ),
        Panel(
            "Received",
            "Bytes per second from each peer.",
            "Bps",
            (rate("hypha_bandwidth_inbound_bytes_total", "peer"),),
        ),
        Panel("Sent", "Bytes per second to each peer.", "Bps", (rate("hypha_bandwidth_outbound_bytes_total", "peer"),)),
        Panel(
            "Lag of the event loop",
            "How late the node runs a task that is due. Above a second, the node misses renewals.",
            "s",
            quantiles("hypha_worker_event_loop_lag_seconds"),
        ),
        Panel(
            "Open files and connections of the node",
            "File descriptors of the node's process.",
            "short",
            (total("process_unix_file_descriptor_count", where=NODE),),
        ),
    ),
)
