"""Rotary position embedding in the GPT-NeoX layout: dimension c is paired with c + D/2."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_rotary_embedding(x: Tensor, *, theta: float = 10_000.0) -> Tensor:
    """Rotates the pair (c, c + D/2) of row t by the angle ``t * theta ** (-2c / D)``.

    Args:
        x: (B, H, T, D), D even; rows stand at positions 0 ... T - 1.
        theta: base of the frequencies.

    Returns:
        The same shape and dtype; the rotation itself is computed in float32 (float64 for float64).
    """
    half = x.shape[-1] // 2
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    frequency = theta ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angle = torch.arange(x.shape[-2], device=x.device, dtype=torch.float64).reshape(-1, 1) * frequency
    cosine, sine = angle.cos().to(dtype), angle.sin().to(dtype)
    first, second = x[..., :half].to(dtype), x[..., half:].to(dtype)
    rotated = torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
    return rotated.to(x.dtype)
