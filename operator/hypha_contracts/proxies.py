"""HTTP proxies: how configurations name them, and which one a download uses."""

from ipaddress import ip_address, ip_network
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _check_port(url: str) -> str:
    try:
        port = urlsplit(url).port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError(f"{url} has no usable port. Write an address such as http://proxy.example.org:3128.")
    return url


ProxyUrl = Annotated[str, Field(max_length=2048, pattern=r"^https?://[^/?#@ ]+/?$"), AfterValidator(_check_port)]
"""Address of a proxy. It holds no password, because a configuration is no place for one."""
_Host = Annotated[str, Field(max_length=253, pattern=r"^[A-Za-z0-9.:/*_-]+$")]


class Proxies(BaseModel):
    """The proxies of downloads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    http: ProxyUrl | None = Field(default=None, description="Proxy for http:// addresses, such as http://proxy:3128.")
    https: ProxyUrl | None = Field(default=None, description="Proxy for https:// addresses.")
    no_proxy: Annotated[list[_Host], Field(max_length=64)] = Field(
        default=[],
        description="Hosts that are asked directly: names (with all names below them), IP addresses and networks.",
    )

    def of(self, scheme: str, host: str) -> str | None:
        """Return the proxy for a host, or None if it is asked directly."""
        if any(_matches(host.lower(), entry.lower()) for entry in self.no_proxy):
            return None
        return self.https if scheme == "https" else self.http

    @property
    def variables(self) -> dict[str, str]:
        """The variables by which libraries know these proxies."""
        named = {"HTTP_PROXY": self.http, "HTTPS_PROXY": self.https, "NO_PROXY": ",".join(self.no_proxy)}
        return {spelled: value for name, value in named.items() if value for spelled in (name, name.lower())}


def _matches(host: str, entry: str) -> bool:
    try:
        return ip_address(host) in ip_network(entry, strict=False)
    except ValueError:
        name = entry.removeprefix("*").removeprefix(".")
        return entry == "*" or host == name or host.endswith(f".{name}")
