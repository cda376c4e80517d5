"""Peak memory of a call on the device, as PyTorch's allocator sees it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from bench.gpu.contenders import FORWARD, Function


def size(tensors: list[Tensor]) -> int:
    """Bytes of the tensors' elements."""
    return sum(x.numel() * x.element_size() for x in tensors)


@dataclasses.dataclass(frozen=True)
class PeakMemory:
    """Bytes. ``total`` counts everything the call touches; ``beyond`` leaves inputs, output and gradients out."""

    total: int
    beyond: int

    def to_json(self) -> dict[str, int]:
        return {"total_bytes": self.total, "beyond_bytes": self.beyond}


def peak_memory(function: Function, tensors: list[Tensor], run: str) -> PeakMemory:
    """The peak of the forward without gradients, or of a forward and a backward in a row.

    The gradient of the output counts as a gradient; it is there before the call.
    """
    leaves = [x.detach().requires_grad_(run != FORWARD) for x in tensors]
    cotangent = [] if run == FORWARD else [torch.randn_like(tensors[0])]

    def call() -> list[Tensor]:
        if run == FORWARD:
            with torch.no_grad():
                return [function(*leaves)]
        output = function(*leaves)
        return [output, *torch.autograd.grad(output, leaves, cotangent[0])]

    call()  # handles, plans and their workspaces are not the call's
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    made = call()
    torch.cuda.synchronize()
    grown = torch.cuda.max_memory_allocated() - before
    return PeakMemory(total=grown + size([*leaves, *cotangent]), beyond=grown - size(made))
