"""What all attention mechanisms share: projections, rotary embedding, the cache of keys and values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache

from .configuration_tda import TdaConfig

Rotation = tuple[Tensor, Tensor]  # cosine and sine, (T, D/2)


def rotation(config: TdaConfig, first: int, length: int, device: torch.device) -> Rotation:
    """Of the positions first .. first + length - 1; angles in float64, since float32 loses them far out."""
    dim = config.hidden_size // config.num_attention_heads
    base = config.rope_theta
    if config.rope_ntk_factor != 1.0:
        base *= config.rope_ntk_factor ** (dim / (dim - 2))
    frequency = base ** (-2.0 * torch.arange(dim // 2, dtype=torch.float64, device=device) / dim)
    angle = torch.outer(torch.arange(first, first + length, dtype=torch.float64, device=device), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """Turns (B, H, T, D); channel c is paired with c + D/2."""
    cosine, sine = turn
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1).to(x.dtype)


class Attention(nn.Module):
    """One layer. A mechanism says how many heads it wants (``layout``) and turns heads into rows (``mix``).

    Names of parameters are those of the checkpoint: ``query.weight`` or, with two views, ``query1.weight`` and so on.
    """

    views = 1

    def __init__(self, config: TdaConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.heads, self.head_dim, self.value_dim = self.layout(config)
        self.suffixes = ("",) if self.views == 1 else ("1", "2")
        width, rows = config.hidden_size, self.heads * self.head_dim
        for suffix in self.suffixes:
            setattr(self, f"query{suffix}", nn.Linear(width, rows, bias=False))
            setattr(self, f"key{suffix}", nn.Linear(width, rows, bias=False))
        self.value = nn.Linear(width, self.heads * self.value_dim, bias=False)
        self.output = nn.Linear(self.heads * self.value_dim, width, bias=False)

    def layout(self, config: TdaConfig) -> tuple[int, int, int]:
        """Heads, and the size of a head's queries and values."""
        dim = config.hidden_size // config.num_attention_heads
        if self.views == 2 and config.view_heads == "halved":
            return config.num_attention_heads // 2, dim, 2 * dim
        return config.num_attention_heads, dim, dim

    def mix(self, q: list[Tensor], k: list[Tensor], v: Tensor, hidden: Tensor) -> Tensor:
        """What stands before the output matrix.

        Args:
            q, k: of each view, (B, H, T_q, D) and (B, H, T_k, D); queries are the last T_q positions.
            v: (B, H, T_k, D_v).
            hidden: (B, T_q, W), what the projections read.

        Returns:
            (B, T_q, H * D_v).
        """
        raise NotImplementedError

    def split(self, projection: str, hidden: Tensor) -> Tensor:
        """(B, T, W) -> (B, H, T, D)."""
        return getattr(self, projection)(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, hidden: Tensor, turn: Rotation, cache: Cache | None) -> Tensor:
        q = [rotate(self.split(f"query{suffix}", hidden), turn) for suffix in self.suffixes]
        k = [rotate(self.split(f"key{suffix}", hidden), turn) for suffix in self.suffixes]
        v = self.split("value", hidden)
        if cache is not None:
            # A cache has one place for keys: those of two views stand side by side in it.
            keys, v = cache.update(torch.cat(k, dim=-1), v, self.layer)
            k = list(keys.split(self.head_dim, dim=-1))
        return self.output(self.mix(q, k, v, hidden).to(hidden.dtype))


# --- what mechanisms are made of ---


def joined(rows: Tensor) -> Tensor:
    """(B, H, T, D_v) -> (B, T, H * D_v)."""
    return rows.transpose(1, 2).flatten(2)


def visible_keys(q: Tensor, k: Tensor) -> Tensor:
    """How many keys each row sees, (T_q, 1) float32."""
    queries, keys = q.shape[-2], k.shape[-2]
    return torch.arange(keys - queries + 1, keys + 1, dtype=torch.float32, device=q.device).unsqueeze(-1)


def is_visible(q: Tensor, k: Tensor) -> Tensor:
    queries, keys = q.shape[-2], k.shape[-2]
    return torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)


def causal_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys j <= i."""
    square = q.shape[-2] == k.shape[-2]
    # is_causal aligns its mask to the top left; one row sees all keys.
    mask = None if square or q.shape[-2] == 1 else is_visible(q, k)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=square)


class RmsNorm(nn.Module):
    """weight * x / sqrt(mean(x ** 2) + eps) over the last dimension, in float32."""

    def __init__(self, *shape: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(*shape))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt())


class HeadRmsNorm(RmsNorm):
    """RMSNorm of every head with a gain of its own: (B, H, T, D_v) -> (B, T, H * D_v); weight (H, D_v)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).flatten(2)
