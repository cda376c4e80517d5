"""The language model in plain PyTorch, written from the published definition alone.

Shares no code with the C++ model: the two agree only if both follow the definition. Everything is dense and slow;
dtype follows the parameters, so that a float64 copy serves as the reference of rounding-error tests.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-5
L2_EPS = 1e-12


@dataclass(frozen=True)
class TwinConfig:
    """The fields of config.json that shape the computation."""

    mechanism: str
    layers: int
    heads: int
    width: int
    vocabulary: int
    rope_theta: float
    rope_factor: float
    halved: bool
    kappa: float
    power: float
    eps: float

    @staticmethod
    def read(path: Path) -> TwinConfig:
        raw: dict[str, Any] = json.loads(path.read_text())
        scaling = raw["rope_scaling"]
        return TwinConfig(
            mechanism=raw["mechanism"],
            layers=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            width=raw["hidden_size"],
            vocabulary=raw["vocab_size"],
            rope_theta=raw["rope_theta"],
            rope_factor=scaling["factor"] if scaling else 1.0,
            halved=raw["view_heads"] == "halved",
            kappa=raw["kappa"],
            power=raw["power"],
            eps=raw["head_norm_eps"],
        )


def rotate(x: Tensor, base: float) -> Tensor:
    """RoPE on (B, H, T, D) at positions 0 .. T-1; dimension c is paired with c + D/2."""
    length, dim = x.shape[-2:]
    frequency = base ** (-2.0 * torch.arange(dim // 2, dtype=torch.float64) / dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., : dim // 2], x[..., dim // 2 :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return gain * x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)


def cosine_scores(q: Tensor, k: Tensor) -> Tensor:
    return F.normalize(q, dim=-1, eps=L2_EPS) @ F.normalize(k, dim=-1, eps=L2_EPS).transpose(-1, -2)


class Attention(nn.Module):
    def __init__(self, config: TwinConfig) -> None:
        super().__init__()
        self.config = config
        width, dim = config.width, config.width // config.heads
        two_views = config.mechanism == "tda"
        self.heads = config.heads // 2 if two_views and config.halved else config.heads
        self.dim = dim
        self.value_dim = width // self.heads
        for name in ("query1", "key1", "query2", "key2") if two_views else ("query", "key"):
            setattr(self, name, nn.Linear(width, self.heads * dim, bias=False))
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        if config.mechanism == "rela":
            self.head_norm = nn.Module()
            self.head_norm.weight = nn.Parameter(torch.ones(width))
        elif config.mechanism in ("tra", "tda"):
            self.head_norm = nn.Module()
            self.head_norm.weight = nn.Parameter(torch.ones(self.heads, self.value_dim))
            self.beta = nn.Parameter(torch.ones(self.heads))
            if two_views:
                self.register_parameter("lambda", nn.Parameter(torch.full((self.heads,), 0.5)))

    def split(self, name: str, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, H, T, D)."""
        batch, length, _ = x.shape
        return getattr(self, name)(x).view(batch, length, self.heads, -1).transpose(1, 2)

    def rectify(self, q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
        """The weights max(0, s - beta c_i)^p of one view."""
        length = q.shape[-2]
        n = torch.arange(1, length + 1, dtype=torch.float64)
        c = torch.sqrt(2 * torch.clamp(torch.log(n / self.config.kappa), min=0) / self.dim).to(q.dtype)
        tau = self.beta.view(-1, 1, 1) * c.view(-1, 1)
        excess = torch.relu(cosine_scores(q, k) - tau)
        return torch.where(visible, excess, torch.zeros_like(excess)).pow(self.config.power)

    def weights(self, x: Tensor, visible: Tensor) -> Tensor:
        config = self.config
        base = config.rope_theta
        if config.rope_factor != 1.0:
            base *= config.rope_factor ** (self.dim / (self.dim - 2))
        if config.mechanism == "tda":
            views = [
                self.rectify(rotate(self.split(f"query{i}", x), base), rotate(self.split(f"key{i}", x), base), visible)
                for i in (1, 2)
            ]
            return views[0] - getattr(self, "lambda").clamp(0, 1).view(-1, 1, 1) * views[1]
        q, k = rotate(self.split("query", x), base), rotate(self.split("key", x), base)
        if config.mechanism == "tra":
            return self.rectify(q, k, visible)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.dim)
        if config.mechanism == "rela":
            return torch.where(visible, torch.relu(scores), torch.zeros_like(scores))
        return scores.masked_fill(~visible, -math.inf).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        visible = torch.ones(length, length, dtype=torch.bool).tril()
        rows = (self.weights(x, visible) @ self.split("value", x)).transpose(1, 2)  # (B, T, H, D_v)
        if self.config.mechanism == "rela":
            rows = rms_norm(rows.reshape(batch, length, width), self.head_norm.weight, self.config.eps)
        elif self.config.mechanism in ("tra", "tda"):
            rows = rms_norm(rows, self.head_norm.weight, self.config.eps)
        return self.output(rows.reshape(batch, length, width))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self, config: TwinConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS, bias=False)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS, bias=False)
        self.mlp = Mlp(config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GptTwin(nn.Module):
    def __init__(self, config: TwinConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS, bias=False)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, V) logits."""
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.final_norm(x))

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats."""
        return F.cross_entropy(self(ids).flatten(0, 1), targets.flatten())


def load_twin(folder: Path) -> GptTwin:
    """The twin of a saved model; every tensor of model.safetensors must find its place and no place may stay empty."""
    twin = GptTwin(TwinConfig.read(folder / "config.json"))
    twin.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return twin
