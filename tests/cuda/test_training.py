"""A small TDA language model trained with the CUDA operator and with the reference operator: the losses go together."""

from __future__ import annotations

import pathlib

import pytest
import torch
from torch import nn

import threshold_attention as ta
from threshold_attention import reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
STEPS, WARMUP, BATCH, LENGTH, WIDTH, HEADS = 200, 40, 8, 256, 128, 2
LEARNING_RATE = 3e-4  # at 1e-3 two fp32 operators that round differently drift apart by 0.05 nat, on a CPU as well


class Block(nn.Module):
    def __init__(self, attend) -> None:
        super().__init__()
        self.attend = attend
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
        self.project = nn.Linear(WIDTH, 5 * WIDTH, bias=False)
        self.output = nn.Linear(WIDTH, WIDTH, bias=False)
        self.head_norm = nn.RMSNorm(WIDTH // HEADS, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH, bias=False)
        )
        self.beta = nn.Parameter(torch.full((HEADS,), 0.25))
        self.lam = nn.Parameter(torch.full((HEADS,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.project(self.norms[0](x)).unflatten(-1, (5, HEADS, -1)).permute(2, 0, 3, 1, 4)
        u = self.attend(*heads, beta=self.beta, lam=self.lam)
        x = x + self.output(self.head_norm(u).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


def make_model(attend) -> nn.Module:
    torch.manual_seed(1337)
    return nn.Sequential(nn.Embedding(256, WIDTH), Block(attend), Block(attend), nn.Linear(WIDTH, 256)).cuda()


def batches() -> list[torch.Tensor]:
    """(BATCH, LENGTH + 1) byte ids each, from the project's documents."""
    documents = sorted((pathlib.Path(__file__).parents[2] / "docs").rglob("*.md"))
    text = torch.frombuffer(bytearray(b"".join(x.read_bytes() for x in documents)), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(1)
    starts = torch.randint(len(text) - LENGTH - 1, (STEPS, BATCH), generator=generator)
    return [torch.stack([text[i : i + LENGTH + 1] for i in row]).cuda() for row in starts]


def loss_of(model: nn.Module, batch: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        logits = model(batch[:, :-1])
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


class Trainer:
    def __init__(self, attend, dtype: torch.dtype) -> None:
        self.model, self.dtype = make_model(attend), dtype
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95))

    def step(self, number: int, batch: torch.Tensor) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (number + 1) / WARMUP)
        loss = loss_of(self.model, batch, self.dtype)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


def test_training_follows_the_reference():
    """Free running in fp32."""
    ours, exact = (Trainer(m.differential_threshold_rela, torch.float32) for m in (ta, reference))
    losses = [(ours.step(i, batch), exact.step(i, batch)) for i, batch in enumerate(batches())]
    assert losses[-1][1] < losses[0][1] - 2.0, "the model does not learn, so nothing is compared"
    assert max(abs(a - b) for a, b in losses) <= 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_along_the_reference(dtype):
    """In 16 bits two roundings of one training drift apart by themselves, so every step starts from the reference's
    weights."""
    exact, ours = Trainer(reference.differential_threshold_rela, dtype), make_model(ta.differential_threshold_rela)
    largest = 0.0
    for i, batch in enumerate(batches()):
        ours.load_state_dict(exact.model.state_dict())
        with torch.no_grad():
            own = loss_of(ours, batch, dtype).item()
        largest = max(largest, abs(own - exact.step(i, batch)))
    assert largest <= 0.01
