"""The gradients that several GPUs exchange, and what a further GPU saves."""

from __future__ import annotations

from dataclasses import dataclass

from colab_utils.memory.costs import PCIE


@dataclass(frozen=True)
class Exchange:
    """An update on several GPUs: each computes its share, then all exchange gradients.

    `compute` and `seconds` are the seconds of the two parts, and each GPU sends `bytes`
    bytes.
    """

    gpus: int
    bytes: float
    seconds: float
    compute: float

    @property
    def times(self) -> float:
        """How many times as many tokens a second as one GPU, at the same micro-batch.

        Nothing is counted for computing while gradients are sent, which torch does.
        """
        return self.gpus * self.compute / (self.compute + self.seconds)

    def __str__(self) -> str:
        """Return the exchange in one line."""
        return (
            f"{self.gpus} GPUs: each computes {self.compute:.2f} s an update and then "
            f"exchanges {self.bytes / 1e6:,.0f} MB of gradients in {self.seconds:.2f} s"
            f", which makes {self.times:.2f} times the tokens a second of one GPU "
            "(computed for T4s)"
        )


def exchange(
    trained: int, gpus: int, compute: float, bandwidth: float = PCIE
) -> Exchange:
    """Return the exchange of the gradients of `trained` float32 parameters.

    `compute` is the time in seconds that each GPU computes for an update. In a ring,
    each GPU sends every gradient 2 (n - 1) / n times (Patarasuk and Yuan 2009).

    >>> exchange(40_000_000, 2, 2.0).times
    1.968503937007874
    """
    sent = 4.0 * trained * 2 * (gpus - 1) / gpus
    return Exchange(gpus, sent, sent / bandwidth, compute)
