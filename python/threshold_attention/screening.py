"""What the forward on Hopper GPUs screened: counters that a caller keeps from call to call, and a report of them.

The forward of 16-bit inputs screens scores in 8 bits and computes exactly what that cannot certify as empty. Where a
head is dense the screen is a loss. With counters, a call finds out from those of the last one which heads to leave
unscreened, and replaces them by its own; all on the device. The outputs and gradients are the same bits in any case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Screening = Literal["automatic", "always", "never"]

# The columns of the counters, tda::ScreeningCounters of include/tda/attention_cuda.h.
COUNTERS = ("row_tiles", "empty", "sparse", "dense", "screened", "crowded", "unscreened_calls")


def screening_counters(n_heads: int, *, device: torch.device | str | None = None) -> Tensor:
    """Counters before the first call: zeros, int32 (n_heads, 7), for one query head a row.

    They belong to one layer, and to calls that follow each other on one CUDA stream. Whatever they hold is safe.
    """
    return torch.zeros(n_heads, len(COUNTERS), dtype=torch.int32, device=device)


@dataclass(frozen=True)
class HeadScreening:
    """What the last call did with one query head. Its rows are counted in tiles of 64; shares are of all of them.

    Attributes:
        row_tiles: of the whole batch. 0: there was no call, or one that other kernels computed (on the CPU, in float32,
            with shapes that the kernels for Hopper do not take), and nothing was screened by this screen.
        empty: share that was certified to hold no survivor.
        sparse: share that was computed where there were candidates.
        dense: share that was computed entirely.
        screened: share that went through the screen; rows whose threshold is not positive never do.
        crowded: share that was screened in vain: there were candidates nearly everywhere.
        unscreened_calls: for how many calls, the last one included, ``screening="automatic"`` has left the head
            unscreened for what had been counted; after 15 it is screened once. A call that is unscreened for another
            reason (a short one, or ``screening="never"``) leaves 0, and the next one begins anew.
    """

    row_tiles: int
    empty: float
    sparse: float
    dense: float
    screened: float
    crowded: float
    unscreened_calls: int


def screening_report(counters: Tensor) -> list[HeadScreening]:
    """The counters of every head as shares. Waits for the device: the only place where the host reads them.

    Raises:
        ValueError: ``counters`` is not what :func:`screening_counters` makes.
    """
    if counters.dim() != 2 or counters.shape[1] != len(COUNTERS) or counters.dtype != torch.int32:
        raise ValueError(
            f"counters: expected int32 of shape (heads, {len(COUNTERS)}), got {counters.dtype} of shape "
            f"{tuple(counters.shape)}"
        )
    heads = []
    for row_tiles, *tiles, unscreened_calls in counters.tolist():
        heads.append(HeadScreening(row_tiles, *(n / max(row_tiles, 1) for n in tiles), unscreened_calls))
    return heads
