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

    def rows(self) -> list[tuple[slice, slice]]:
        """Query rows and key rows of every document."""
        offsets = [itertools.pairwise(itertools.accumulate(row, initial=0)) for row in zip(*self.lengths, strict=True)]
        return [(slice(*queries), slice(*keys)) for queries, keys in zip(*offsets, strict=True)]

    def documents(self) -> list[dict[str, Tensor]]:
        """The tensors of every document as (1, heads, length, dim), and beta and lam."""
        return [
            {
                name: x[queries if name[0] == "q" else keys].transpose(0, 1)[None] if x.dim() == 3 else x
                for name, x in self.tensors.items()
                if name in self.names
            }
            for queries, keys in self.rows()
        ]

    def attend_one_by_one(self, module: ModuleType, **options) -> tuple[Tensor, Tensor]:
        """module's plain operator on every document: output (total, heads, dim), survivors (heads, total)."""
        results = []
        for t in self.documents():
            parameters = {name: t[name] for name in ("beta", "lam") if name in t}
            if self.views == 1:
                call = module.threshold_rela(t["q1"], t["k1"], t["v"], **parameters, **options)
            else:
                tensors = (t[name] for name in ("q1", "k1", "q2", "k2", "v"))
                call = module.differential_threshold_rela(*tensors, **parameters, **options)
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


def cotangent_of(output: Tensor) -> Tensor:
    """The same numbers for outputs of the same shape, dtype and device."""
    values = torch.sin(torch.arange(output.numel(), dtype=torch.float64)).reshape(output.shape)
    return values.to(output.dtype).to(output.device)


def gradients(output: Tensor, packed: Packed, cotangent: Tensor | None = None) -> dict[str, Tensor]:
    grads = torch.autograd.grad(output, packed.leaves(), cotangent_of(output) if cotangent is None else cotangent)
    return dict(zip(packed.names, grads, strict=True))
