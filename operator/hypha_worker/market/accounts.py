"""What schedulers have leased: bookkeeping in the network's own unit of price, which is no payment. Pure."""

from typing import Final
from uuid import UUID

from hypha_messages.types import Message, Uuid

MAX_ACCOUNTS: Final = 20
OTHERS: Final = "other"
"""The account of all schedulers beyond `MAX_ACCOUNTS`."""
_COUNTED: Final = 64
"""How many leases the accounts remember, so that a restarted node counts none of them again."""


class Account(Message):
    """The ended leases of one scheduler: their number, their seconds, and the sum of each one's price times seconds.

    A lease counts from its acceptance to its end.
    """

    scheduler: str
    leases: int = 0
    leased_s: float = 0.0
    earned: float = 0.0


class Accounts(Message):
    """The accounts of all schedulers, and the leases that were counted last."""

    of: tuple[Account, ...] = ()
    counted: tuple[Uuid, ...] = ()

    def count(self, lease_id: UUID, scheduler: str, price: float, leased_s: float) -> "Accounts":
        """Return the accounts with one more ended lease. A new scheduler gets an account while there are few."""
        if lease_id in self.counted:
            return self
        by_name = {account.scheduler: account for account in self.of}
        has_own = scheduler in by_name or len(by_name.keys() - {OTHERS}) < MAX_ACCOUNTS
        name = scheduler if has_own else OTHERS
        before = by_name.get(name, Account(scheduler=name))
        by_name[name] = Account(
            scheduler=name,
            leases=before.leases + 1,
            leased_s=before.leased_s + leased_s,
            earned=before.earned + price * leased_s,
        )
        return Accounts(of=tuple(by_name.values()), counted=(*self.counted, lease_id)[-_COUNTED:])
