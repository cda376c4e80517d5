"""A goal, whether a ratio meets it, and how a ratio is shown."""

from __future__ import annotations

import dataclasses
import math

MET, MISSED, NO_VERDICT = "met", "missed", "-"
LARGEST_SHARE = 1000  # a larger share says only that the peer needed next to nothing


@dataclasses.dataclass(frozen=True)
class Goal:
    """A bound on a ratio: at least that many times as fast, or at most that share of the memory."""

    bound: float
    at_most: bool = False

    def verdict(self, ratio: float | None) -> str:
        """``met`` or ``missed``; no verdict without a ratio. The ratio is compared as measured, not as shown."""
        if ratio is None or math.isnan(ratio):
            return NO_VERDICT
        return MET if (ratio <= self.bound if self.at_most else ratio >= self.bound) else MISSED

    def to_json(self) -> dict[str, float]:
        return {"at_most" if self.at_most else "at_least": self.bound}

    @staticmethod
    def from_json(value: dict[str, float] | None) -> Goal | None:
        if value is None:
            return None
        ((kind, bound),) = value.items()
        return Goal(bound, at_most=kind == "at_most")

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"


def shown(ratio: float | None, *, at_most: bool = False) -> str:
    """Two decimals, cut to the worse side so that no row looks better than it is: 2.999 is 2.99, as a share 3.00."""
    if ratio is None or math.isnan(ratio):
        return "-"
    if math.isinf(ratio):
        return "∞"
    if at_most and ratio > LARGEST_SHARE:
        return f"> {LARGEST_SHARE}"
    # A millionth of slack keeps a ratio that is exactly 1.15 from being shown as 1.14.
    cut = math.ceil(100 * ratio - 1e-6) if at_most else math.floor(100 * ratio + 1e-6)
    return f"{cut / 100:.2f}"
