"""The operators in plain PyTorch: the formulas, nothing else.

Any dtype and device, differentiable as often as wanted, and slow: every buffer has T_q x T_k elements. A NaN or Inf in
v spreads to every row that sees it; the operators confine it to rows with weight on it.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

__all__ = [
    "attention_weights",
    "differential_threshold_rela",
    "differential_threshold_rela_varlen",
    "threshold_rela",
    "threshold_rela_varlen",
]


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _per_head(value: float | Tensor, q: Tensor) -> Tensor:
    """(1, 1, 1) or (H, 1, 1), to be multiplied with (B, H, T_q, T_k)."""
    return torch.as_tensor(value, dtype=q.dtype, device=q.device).reshape(-1, 1, 1)


def attention_weights(
    q: Tensor,
    k: Tensor,
    *,
    beta: float | Tensor = 1.0,
    kappa: float = 1.0,
    power: float = 2.0,
    normalize: bool = True,
) -> Tensor:
    """The weights ``a`` of one view, (B, H_q, T_q, T_k): exactly 0 for dead pairs and for keys of the future."""
    query_length, dim = q.shape[-2:]
    key_length = k.shape[-2]
    if normalize:
        q, k = _unit(q), _unit(k)
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-1, -2)
    position = torch.arange(key_length - query_length, key_length, device=q.device)
    log_ratio = ((position + 1).double() / kappa).log().clamp_min(0.0)
    tau = _per_head(beta, q) * (2.0 * log_ratio / dim).sqrt().to(q.dtype).reshape(-1, 1)
    future = torch.arange(key_length, device=q.device) > position.reshape(-1, 1)
    r = scores - tau
    # Dead pairs leave the graph before the power, whose derivatives at 0 need not be finite.
    dead = (r <= 0.0) | future
    return r.masked_fill(dead, 1.0).pow(power).masked_fill(dead, 0.0)


def threshold_rela(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    beta: float | Tensor = 1.0,
    kappa: float = 1.0,
    power: float = 2.0,
    normalize: bool = True,
    return_statistics: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`threshold_attention.threshold_rela` in plain PyTorch."""
    weights = attention_weights(q, k, beta=beta, kappa=kappa, power=power, normalize=normalize)
    output = weights @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    return (output, (weights != 0).sum(-1, dtype=torch.int32)) if return_statistics else output


def differential_threshold_rela(
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    v: Tensor,
    *,
    lam: float | Tensor,
    beta: float | Tensor = 1.0,
    kappa: float = 1.0,
    power: float = 2.0,
    normalize: bool = True,
    return_statistics: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`threshold_attention.differential_threshold_rela` in plain PyTorch."""
    a1 = attention_weights(q1, k1, beta=beta, kappa=kappa, power=power, normalize=normalize)
    a2 = attention_weights(q2, k2, beta=beta, kappa=kappa, power=power, normalize=normalize)
    weights = a1 - _per_head(lam, q1).clamp(0.0, 1.0) * a2
    output = weights @ v.repeat_interleave(q1.shape[1] // v.shape[1], dim=1)
    return (output, ((a1 != 0) | (a2 != 0)).sum(-1, dtype=torch.int32)) if return_statistics else output


def _documents(tensors: tuple[Tensor, ...], cu_seqlens: Tensor) -> list[tuple[Tensor, ...]]:
    """Cuts (total, H, D) tensors into (1, H, T, D) ones, one tuple a document."""
    offsets = cu_seqlens.tolist()
    return [
        tuple(x[first:last].transpose(0, 1).unsqueeze(0) for x in tensors)
        for first, last in itertools.pairwise(offsets)
    ]


def _pack(results: list[tuple[Tensor, Tensor]], return_statistics: bool) -> Tensor | tuple[Tensor, Tensor]:
    output = torch.cat([output.squeeze(0).transpose(0, 1) for output, _ in results])
    return (output, torch.cat([survivors.squeeze(0) for _, survivors in results], -1)) if return_statistics else output


def threshold_rela_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    *,
    return_statistics: bool = False,
    **options: float | Tensor,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`threshold_attention.threshold_rela_varlen` in plain PyTorch: a loop over the documents."""
    del max_seqlen_q, max_seqlen_k
    queries, keys_values = _documents((q,), cu_seqlens_q), _documents((k, v), cu_seqlens_k)
    results = [
        threshold_rela(*qs, *kvs, **options, return_statistics=True)
        for qs, kvs in zip(queries, keys_values, strict=True)
    ]
    return _pack(results, return_statistics)


def differential_threshold_rela_varlen(
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    *,
    return_statistics: bool = False,
    **options: float | Tensor,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`threshold_attention.differential_threshold_rela_varlen` in plain PyTorch: a loop over the documents."""
    del max_seqlen_q, max_seqlen_k
    results = [
        differential_threshold_rela(q_1, k_1, q_2, k_2, values, **options, return_statistics=True)
        for (q_1, q_2), (k_1, k_2, values) in zip(
            _documents((q1, q2), cu_seqlens_q), _documents((k1, k2, v), cu_seqlens_k), strict=True
        )
    ]
    return _pack(results, return_statistics)
