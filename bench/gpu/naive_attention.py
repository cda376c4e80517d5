"""TRA in plain PyTorch, as one writes it down: all T x T scores, for torch.compile to fuse what it can."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def naive_threshold_rela(q: Tensor, k: Tensor, v: Tensor, tau: Tensor, power: float = 2.0) -> Tensor:
    """q, k, v (B, H, T, D), tau fp32 (T,) -> (B, H, T, D)."""
    scores = normalize(q, dim=-1) @ normalize(k, dim=-1).transpose(-1, -2)
    weights = torch.relu(scores - tau[:, None]).pow(power).tril().to(v.dtype)
    return weights @ v
