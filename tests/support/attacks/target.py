"""What the attackers know: their victim, its gateway, and who they are themselves."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Credentials:
    """A certified peer's files, as text. `role` decides which attacks it makes."""

    role: str
    cert_pem: str
    key_pem: str
    trust_pem: str

    @property
    def pem(self) -> tuple[str, str, str]:
        return self.cert_pem, self.key_pem, self.trust_pem


@dataclass(frozen=True)
class Target:
    """The victim's addresses, the attackers, and which attacks they make.

    Attributes:
        address: where the node listens, with its peer id.
        gateway: where the gateway listens, with its peer id.
        connector: the Unix socket at which the node serves the bridges of its jobs.
        attackers: one for each attacker. Attackers without a certificate of this network have the role `stranger`.
        attacks: the attacks to make, in rotation, as "role: name".
        leases: ids of leases that others hold.
        seeds: by peer id, the keys of the certified attackers.
    """

    address: str
    gateway: str
    connector: str
    attackers: list[Credentials]
    attacks: list[str]
    leases: list[str] = field(default_factory=list)
    seeds: dict[str, bytes] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(path: Path) -> "Target":
        fields = json.loads(path.read_text())
        return Target(**fields | {"attackers": [Credentials(**entry) for entry in fields["attackers"]]})

    @property
    def endpoint(self) -> tuple[str, int]:
        """The host and port of the node."""
        _, _, host, _, port = self.address.split("/")[:5]
        return host, int(port)
