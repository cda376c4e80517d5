"""TRA as FlexAttention can express it: the best a user has without a kernel of their own.

The weight (s - tau)_+^p is exp(p log(s - tau)) where s > tau, so a softmax over scores p·log(s - tau), minus infinity
where s <= tau, gives the weights over their sum, and exp(lse) is that sum: TRA is output * exp(lse). A row without a
survivor has lse = minus infinity and the output 0. Every visible pair is computed; only the causal half is skipped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention
from torch.nn.functional import normalize


def thresholds(length: int, dim: int, beta: float, device: torch.device | str) -> Tensor:
    """tau of every row, fp32 (T,), natural logarithm, kappa = 1."""
    rows = torch.arange(1, length + 1, device=device, dtype=torch.float64)
    return (beta * (2.0 * rows.log() / dim).sqrt()).float()


def _is_visible(_batch: Tensor, _head: Tensor, row: Tensor, key: Tensor) -> Tensor:
    return row >= key


def causal_mask(length: int, device: torch.device | str) -> BlockMask:
    """Blocks above the diagonal are skipped."""
    return create_block_mask(_is_visible, None, None, length, length, device=str(device))


def log_weight(score: Tensor, tau: Tensor, power: float) -> Tensor:
    """The logarithm of (score - tau)_+^power, minus infinity where nothing survives; its gradient there is 0."""
    excess = score - tau
    alive = excess > 0.0
    return torch.where(alive, power * torch.log(torch.where(alive, excess, 1.0)), -math.inf)


def flex_threshold_rela(q: Tensor, k: Tensor, v: Tensor, tau: Tensor, mask: BlockMask, power: float = 2.0) -> Tensor:
    """q, k, v (B, H, T, D) -> (B, H, T, D); see the head of this file. Meant to be compiled."""

    def threshold(score: Tensor, _batch: Tensor, _head: Tensor, row: Tensor, _key: Tensor) -> Tensor:
        return log_weight(score, tau[row], power)

    output, statistics = flex_attention(
        normalize(q, dim=-1),
        normalize(k, dim=-1),
        v,
        score_mod=threshold,
        block_mask=mask,
        scale=1.0,
        return_aux=AuxRequest(lse=True),
    )
    return (output * statistics.lse.exp().unsqueeze(-1)).to(v.dtype)
