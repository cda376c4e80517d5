"""Random packed documents for the varlen operators, and the same documents one call at a time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from types import ModuleType

import torch
from attention_inputs import GRADIENT_NAMES, random_inputs
from torch import Tensor

# (queries, keys) of the documents. Tiles are powers of two: documents begin everywhere in a tile and end around it.
PACKINGS = {
    "training": [(65, 65), (1, 1), (63, 63), (128, 128), (17, 17)],
    "fewer queries than keys": [(5, 40), (1, 130), (33, 64), (64, 65), (1, 1)],
    "empty documents": [(0, 0), (7, 7), (0, 19), (40, 70), (0, 0)],
    "one document": [(90, 100)],
    "one-token documents": [(1, 1)] * 9,
}


@dataclass
class Packed:
    """(total, heads, dim) tensors, beta and lam per query head, and the offsets."""

    lengths: list[tuple[int, int]]
    tensors: dict[str, Tensor]
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    views: int = 2
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        one = [name for name in GRADIENT_NAMES if name not in ("q2", "k2", "lam")]
        self.names = list(GRADIENT_NAMES) if self.views == 2 else one

    def leaves(self) -> list[Tensor]:
        return [self.tensors[name] for name in self.names]

    def longest(self) -> dict[str, int]:
        return {"max_seqlen_q": max(q for q, _ in self.lengths), "max_seqlen_k": max(k for _, k in self.lengths)}

    def attend(self, module: ModuleType, **options) -> Tensor | tuple[Tensor, Tensor]:
        """module's varlen operator on everything."""
        t = self.tensors
        offsets = (self.cu_seqlens_q, self.cu_seqlens_k)
        if self.views == 1:
            return module.threshold_rela_varlen(t["q1"], t["k1"], t["v"], *offsets, beta=t["beta"], **options)
        return module.differential_threshold_rela_varlen(
            t["q1"], t["k1"], t["q2"], t["k2"], t["v"], *offsets, beta=t["beta"], lam=t["lam"], **options
        )

    def attend_one_by_one(self, module: ModuleType, **options) -> tuple[Tensor, Tensor]:
        """module's plain operator on every document: output (total, heads, dim), survivors (heads, total)."""
        t, results = self.tensors, []
        for (q0, q1), (k0, k1) in zip(
            itertools.pairwise(itertools.accumulate((q for q, _ in self.lengths), initial=0)),
            itertools.pairwise(itertools.accumulate((k for _, k in self.lengths), initial=0)),
            strict=True,
        ):
            rows = {"q": slice(q0, q1), "k": slice(k0, k1), "v": slice(k0, k1)}
            own = {name: t[name][rows[name[0]]].transpose(0, 1)[None] for name in self.names if t[name].dim() == 3}
            if self.views == 1:
                call = module.threshold_rela(own["q1"], own["k1"], own["v"], beta=t["beta"], **options)
            else:
                call = module.differential_threshold_rela(*own.values(), beta=t["beta"], lam=t["lam"], **options)
            results.append(call)
        return (
            torch.cat([output[0].transpose(0, 1) for output, _ in results]),
            torch.cat([survivors[0] for _, survivors in results], -1),
        )


def packed_inputs(
    lengths: list[tuple[int, int]], *, views: int = 2, device: str = "cpu", requires_grad: bool = True, **options
) -> Packed:
    """Options: query_heads, key_heads, dim, value_dim, beta, dtype, seed of attention_inputs.random_inputs."""
    totals = {"query_length": sum(q for q, _ in lengths), "key_length": sum(k for _, k in lengths)}
    inputs = random_inputs(batch=1, **totals, **options)
    tensors = {
        name: (x[0].transpose(0, 1).contiguous() if x.dim() == 4 else x).to(device).requires_grad_(requires_grad)
        for name, x in inputs.items()
    }
    offsets = [
        torch.tensor([0, *itertools.accumulate(row)], dtype=torch.int32, device=device)
        for row in zip(*lengths, strict=True)
    ]
    return Packed(lengths, tensors, *offsets, views=views)


def gradients(output: Tensor, packed: Packed) -> dict[str, Tensor]:
    cotangent = torch.sin(torch.arange(output.numel(), dtype=torch.float64)).reshape(output.shape)
    grads = torch.autograd.grad(output, packed.leaves(), cotangent.to(output.dtype).to(output.device))
    return dict(zip(packed.names, grads, strict=True))
