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
    gate: str
    entmax_alpha: float
    lssar_power: float
    lssar_offset: float
    rela_norm: str
    dex_annealing_steps: int
    softpick_eps: float

    @property
    def two_views(self) -> bool:
        return self.mechanism in ("tda", "diff_rela", "diff_softmax")

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
            # Differential softmax is defined with half the heads.
            halved=raw["view_heads"] == "halved" or raw["mechanism"] == "diff_softmax",
            kappa=raw["kappa"],
            power=raw["power"],
            eps=raw["head_norm_eps"],
            gate=raw.get("gate", "head"),
            entmax_alpha=raw.get("entmax_alpha", 1.5),
            lssar_power=raw.get("lssar_power", 15.0),
            lssar_offset=raw.get("lssar_offset", 1.0),
            rela_norm=raw.get("rela_norm", "rms"),
            dex_annealing_steps=raw.get("dex_annealing_steps", 1000),
            softpick_eps=raw.get("softpick_eps", 1e-8),
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


def entmax(scores: Tensor, visible: Tensor, alpha: float) -> Tensor:
    """max(0, (alpha - 1) z - tau)^(1 / (alpha - 1)), each row summing to 1; tau by bisection."""
    y = (alpha - 1) * scores.masked_fill(~visible, -math.inf)
    y = y - y.amax(-1, keepdim=True).detach()
    with torch.no_grad():
        low, high = torch.full_like(y[..., :1], -1), torch.zeros_like(y[..., :1])
        for _ in range(80):
            middle = (low + high) / 2
            enough = (y - middle).clamp(min=0).pow(1 / (alpha - 1)).sum(-1, keepdim=True) >= 1
            low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    # One step of Newton's method from the root: it moves nothing but carries the derivative of tau.
    excess = (y - low).clamp(min=0)
    support = excess > 0
    slope = torch.where(support, excess, 1).pow((2 - alpha) / (alpha - 1)) * support / (alpha - 1)
    tau = low + (excess.pow(1 / (alpha - 1)).sum(-1, keepdim=True) - 1) / slope.sum(-1, keepdim=True).detach()
    return (y - tau).clamp(min=0).pow(1 / (alpha - 1))


def softpick(scores: Tensor, visible: Tensor, eps: float) -> Tensor:
    greatest = scores.masked_fill(~visible, 0).amax(-1, keepdim=True).clamp(min=0).detach()
    scaled = torch.where(visible, torch.exp(-greatest) * torch.expm1(scores), 0)
    return torch.relu(scaled) / (scaled.abs().sum(-1, keepdim=True) + eps)


def lssar(cosines: Tensor, visible: Tensor, dim: int, power: float, offset: float) -> Tensor:
    n = torch.arange(1, cosines.shape[-1] + 1, dtype=cosines.dtype).view(-1, 1)
    w = torch.where(visible, F.softplus(math.log(dim) * torch.log(n) * cosines), 0)
    y = torch.relu(n * w / w.sum(-1, keepdim=True) - offset * (n > 3)) * visible
    y = (y / y.amax(-1, keepdim=True).detach()).pow(power)
    return y / y.sum(-1, keepdim=True)


class Attention(nn.Module):
    def __init__(self, config: TwinConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        width, dim = config.width, config.width // config.heads
        self.heads = config.heads // 2 if config.two_views and config.halved else config.heads
        self.dim = dim
        self.value_dim = width // self.heads
        self.initial_lambda = 0.8 - 0.6 * math.exp(-0.3 * layer)
        for name in ("query1", "key1", "query2", "key2") if config.two_views else ("query", "key"):
            setattr(self, name, nn.Linear(width, self.heads * dim, bias=False))
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.add_norm()
        self.add_parameters()

    def add_norm(self) -> None:
        config, width = self.config, self.config.width
        per_head = (self.heads, self.value_dim)
        shapes = {"tra": per_head, "tda": per_head, "diff_rela": per_head, "diff_softmax": (self.value_dim,)}
        shapes["rela"] = per_head if config.rela_norm == "head_rms" else (width,)
        if config.mechanism in shapes:
            self.head_norm = nn.Module()
            self.head_norm.weight = nn.Parameter(torch.ones(shapes[config.mechanism]))
            if config.mechanism == "rela" and config.rela_norm == "gated_rms":
                self.head_norm.gate = nn.Parameter(torch.zeros(width))

    def add_parameters(self) -> None:
        config, width, heads = self.config, self.config.width, self.heads
        match config.mechanism:
            case "gated_softmax":
                self.gate = nn.Linear(width, width if config.gate == "element" else heads, bias=False)
            case "ssmax":
                self.scale = nn.Parameter(torch.ones(heads))
                self.bias = nn.Parameter(torch.zeros(heads))
            case "asentmax":
                self.beta, self.gamma = nn.Linear(width, heads), nn.Linear(width, heads)
            case "diff_softmax":
                for name in ("lambda_query1", "lambda_key1", "lambda_query2", "lambda_key2"):
                    self.register_parameter(name, nn.Parameter(torch.zeros(self.dim)))
            case "dex":
                self.differential = nn.Linear(self.value_dim, self.value_dim, bias=False)
                self.lambda_learned = nn.Parameter(torch.zeros(1))
                self.register_buffer("annealing_step", torch.zeros(1))
        if config.mechanism in ("tra", "tda"):
            self.beta = nn.Parameter(torch.ones(heads))
        if config.mechanism in ("tda", "diff_rela"):
            self.register_parameter("lambda", nn.Parameter(torch.full((heads,), 0.5)))

    def split(self, name: str, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, H, T, D)."""
        batch, length, _ = x.shape
        return getattr(self, name)(x).view(batch, length, self.heads, -1).transpose(1, 2)

    def turned(self, name: str, x: Tensor) -> Tensor:
        base = self.config.rope_theta
        if self.config.rope_factor != 1.0:
            base *= self.config.rope_factor ** (self.dim / (self.dim - 2))
        return rotate(self.split(name, x), base)

    def rectify(self, q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
        """The weights max(0, s - beta c_i)^p of one view."""
        length = q.shape[-2]
        n = torch.arange(1, length + 1, dtype=torch.float64)
        c = torch.sqrt(2 * torch.clamp(torch.log(n / self.config.kappa), min=0) / self.dim).to(q.dtype)
        tau = self.beta.view(-1, 1, 1) * c.view(-1, 1)
        excess = torch.relu(cosine_scores(q, k) - tau)
        return torch.where(visible, excess, torch.zeros_like(excess)).pow(self.config.power)

    def length_factor(self, x: Tensor) -> Tensor:
        """What SSMax and ASEntmax multiply the scores of row i by."""
        n = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)
        if self.config.mechanism == "ssmax":
            return (self.scale.view(-1, 1) * torch.log(n) + self.bias.view(-1, 1)).unsqueeze(-1)
        beta = F.softplus(self.beta(x)).transpose(1, 2)
        gamma = 2 * torch.tanh(self.gamma(x)).transpose(1, 2)
        return (1 + beta * torch.log(n + 1) ** gamma).unsqueeze(-1)

    def view_weights(self, q: Tensor, k: Tensor, x: Tensor, visible: Tensor) -> Tensor:
        config = self.config
        if config.mechanism in ("tra", "tda"):
            return self.rectify(q, k, visible)
        if config.mechanism == "lssar":
            return lssar(cosine_scores(q, k), visible, self.dim, config.lssar_power, config.lssar_offset)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.dim)
        if config.mechanism in ("ssmax", "asentmax"):
            scores = self.length_factor(x) * scores
        match config.mechanism:
            case "rela" | "diff_rela":
                return torch.where(visible, torch.relu(scores), 0)
            case "entmax" | "asentmax":
                return entmax(scores, visible, config.entmax_alpha)
            case "softpick":
                return softpick(scores, visible, config.softpick_eps)
        return scores.masked_fill(~visible, -math.inf).softmax(-1)

    def second_view_factor(self) -> Tensor:
        if self.config.mechanism != "diff_softmax":
            return getattr(self, "lambda").clamp(0, 1).view(-1, 1, 1)
        first = torch.exp((self.lambda_query1 * self.lambda_key1).sum())
        return first - torch.exp((self.lambda_query2 * self.lambda_key2).sum()) + self.initial_lambda

    def weights(self, x: Tensor, visible: Tensor) -> Tensor:
        views = [
            self.view_weights(self.turned(f"query{suffix}", x), self.turned(f"key{suffix}", x), x, visible)
            for suffix in (("1", "2") if self.config.two_views else ("",))
        ]
        return views[0] - self.second_view_factor() * views[1] if self.config.two_views else views[0]

    def finish_rela(self, rows: Tensor) -> Tensor:
        gain, eps, joined = self.head_norm.weight, self.config.eps, rows.flatten(2)
        match self.config.rela_norm:
            case "head_rms":
                return rms_norm(rows, gain, eps)
            case "layer":
                return F.layer_norm(joined, gain.shape, gain, None, eps)
            case "gated_rms":
                return rms_norm(joined, gain, eps) * torch.sigmoid(self.head_norm.gate * joined)
        return rms_norm(joined, gain, eps)

    def finish(self, rows: Tensor, x: Tensor) -> Tensor:
        """What follows the product with the values, on (B, T, H, D_v)."""
        config = self.config
        match config.mechanism:
            case "tra" | "tda" | "diff_rela":
                return rms_norm(rows, self.head_norm.weight, config.eps)
            case "diff_softmax":
                return (1 - self.initial_lambda) * rms_norm(rows, self.head_norm.weight, 1e-5)
            case "rela":
                return self.finish_rela(rows)
            case "gated_softmax":
                return rows * torch.sigmoid(self.gate(x)).unflatten(-1, (self.heads, -1))
            case "dex":
                a = (self.annealing_step / config.dex_annealing_steps).clamp(max=1)
                factor = (1 - a) * a * self.initial_lambda + a * self.lambda_learned
                return rows - factor * self.differential(rows)
        return rows

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool).tril()
        rows = (self.weights(x, visible) @ self.split("value", x)).transpose(1, 2)  # (B, T, H, D_v)
        return self.output(self.finish(rows, x).reshape(x.shape))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self, config: TwinConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS, bias=False)
        self.attention = Attention(config, layer)
        self.mlp_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS, bias=False)
        self.mlp = Mlp(config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GptTwin(nn.Module):
    def __init__(self, config: TwinConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
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
