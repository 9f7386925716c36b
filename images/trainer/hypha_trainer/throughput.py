"""What a round trained, and the share of its time that it waited: counted by the loop, printed once per round."""

from dataclasses import dataclass
from math import isfinite


@dataclass
class RoundTally:
    """Counts of one round, and times in seconds.

    Attributes:
        began_s: When the round began, by the monotonic clock.
        tokens: 0 if the batches hold no text.
        not_finite: Losses that were NaN or infinite. They are left out of the mean.
        data_s: Time spent waiting for batches.
        network_s: Time spent waiting for answers to reports, and sending the pseudo-gradient.
        outer_step_s: Time from the sent pseudo-gradient to the merged update.
    """

    began_s: float
    batches: int = 0
    samples: int = 0
    tokens: int = 0
    not_finite: int = 0
    loss_sum: float = 0.0
    data_s: float = 0.0
    network_s: float = 0.0
    outer_step_s: float = 0.0

    def add_loss(self, loss: float) -> None:
        """Count a batch by its loss."""
        self.batches += 1
        if isfinite(loss):
            self.loss_sum += loss
        else:
            self.not_finite += 1

    def trained(self) -> str:
        """Describe what was trained."""
        finite = self.batches - self.not_finite
        mean = f"{self.loss_sum / finite:.4f}" if finite else "not finite"
        return f"{self.batches} batches, {self.samples} samples, loss {mean}"

    def throughput(self, now_s: float) -> str:
        """Describe how fast the round was, and what it waited for."""
        took_s = max(now_s - self.began_s, 1e-9)
        tokens = f", {self.tokens / took_s:.1f} tokens/s" if self.tokens else ""
        waited = {"data": self.data_s, "the network": self.network_s, "the outer step": self.outer_step_s}
        shares = ", ".join(f"{100 * waited_s / took_s:.1f}% for {what}" for what, waited_s in waited.items())
        return f"{self.samples / took_s:.1f} samples/s{tokens} over {took_s:.1f} s; waited {shares}"
