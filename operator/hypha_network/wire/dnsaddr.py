"""Look-up of `/dnsaddr/NAME`, the name of a gateway whose addresses stand in TXT records of `_dnsaddr.NAME`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio
from dns.exception import DNSException

from hypha_messages.types import peer_id_to_bytes
from hypha_network.errors import DialError
from hypha_network.wire import addresses
from hypha_network.wire.addresses import Address, AddressError

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver

MAX_ADDRESSES: Final = 16
"""Maximum number of addresses of a name. Further ones are ignored."""
MAX_NAMES: Final = 16
"""Maximum number of names that are looked up for one, because records may refer to other names."""
LOOK_UP_TIMEOUT_S: Final = 5.0
"""How long all look-ups together may take."""
_PREFIX: Final = "dnsaddr="


@dataclass(frozen=True)
class NamedGateway:
    """The address `/dnsaddr/NAME`, with the peer id that the gateway must have if it names one."""

    name: str
    peer_id: str | None = None

    def __str__(self) -> str:
        return f"/dnsaddr/{self.name}" + (f"/p2p/{self.peer_id}" if self.peer_id is not None else "")


def parse(text: str) -> NamedGateway | None:
    """Parse `/dnsaddr/NAME[/p2p/ID]`; None if the text does not begin so. AddressError if it is malformed."""
    match text.split("/"):
        case ["", "dnsaddr", name]:
            peer_id = None
        case ["", "dnsaddr", name, "p2p" | "ipfs", peer_id]:
            pass
        case ["", "dnsaddr", *_]:
            raise AddressError(f"{text!r} is not a usable address: after the name, only /p2p/<peer id> may follow")
        case _:
            return None
    try:
        if peer_id is not None:
            peer_id_to_bytes(peer_id)
        return NamedGateway(addresses.parse_host("dnsaddr", name), peer_id)
    except ValueError as error:
        raise AddressError(
            f"{text!r} is not a usable address: {error}. Write it as /dnsaddr/gateway.example.org"
        ) from error


def parse_gateway(text: str) -> Address | NamedGateway | None:
    """Parse the address of a gateway; None if this node does not have its transport. AddressError if malformed."""
    return parse(text) or addresses.parse_supported(text)


async def look_up(gateway: NamedGateway) -> list[Address]:
    """Return the addresses of a gateway that this node can use, at least one. DialError says why there is none."""
    found: dict[Address, None] = {}
    names, refused = [gateway.name], ""
    try:
        with trio.fail_after(LOOK_UP_TIMEOUT_S):
            for name in names:  # grows meanwhile
                for text in await _records(name):
                    try:
                        parsed = parse_gateway(text)
                    except AddressError as error:
                        refused = f": {error}"
                        continue
                    if isinstance(parsed, Address) and parsed.relay is None:
                        if gateway.peer_id in (None, parsed.peer_id) and len(found) < MAX_ADDRESSES:
                            found[parsed] = None
                    elif isinstance(parsed, NamedGateway) and parsed.name not in names and len(names) < MAX_NAMES:
                        names.append(parsed.name)
    except trio.TooSlowError:
        raise DialError(f"{gateway}: no answer of the name server within {LOOK_UP_TIMEOUT_S:g} s") from None
    except DNSException as error:
        raise DialError(f"{gateway}: {error}") from error
    if not found:
        raise DialError(f"{gateway}: no TXT record of _dnsaddr.{gateway.name} names an address to use{refused}")
    return list(found)


async def _records(name: str) -> list[str]:
    """Return the addresses in the TXT records of a name."""
    answer = await resolver().resolve(f"_dnsaddr.{name}", "TXT", raise_on_no_answer=False)
    texts = [b"".join(record.strings).decode("ascii", "replace") for record in answer]
    return [text.removeprefix(_PREFIX) for text in texts if text.startswith(_PREFIX)]


def resolver() -> "Resolver":
    """Return a resolver with the name servers of this machine."""
    from dns.asyncresolver import Resolver  # noqa: PLC0415 - takes longer than all else that reads a configuration

    return Resolver()
