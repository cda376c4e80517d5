"""A small TDA language model trained with the CUDA operator and with the reference operator: the losses go together."""

from __future__ import annotations

import pathlib

import pytest
import torch
from torch import nn

import threshold_attention as ta
from threshold_attention import reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
STEPS, BATCH, LENGTH, WIDTH, HEADS = 200, 8, 256, 128, 2


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
        self.beta = nn.Parameter(torch.full((HEADS,), 0.5))
        self.lam = nn.Parameter(torch.full((HEADS,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.project(self.norms[0](x)).unflatten(-1, (5, HEADS, -1)).permute(2, 0, 3, 1, 4)
        u = self.attend(*heads, beta=self.beta, lam=self.lam)
        x = x + self.output(self.head_norm(u).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


def losses(attend, dtype: torch.dtype, text: torch.Tensor) -> list[float]:
    torch.manual_seed(1337)
    model = nn.Sequential(nn.Embedding(256, WIDTH), Block(attend), Block(attend), nn.Linear(WIDTH, 256)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(1)
    result = []
    for _ in range(STEPS):
        starts = torch.randint(len(text) - LENGTH - 1, (BATCH,), generator=generator)
        windows = torch.stack([text[i : i + LENGTH + 1] for i in starts]).cuda()
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            logits = model(windows[:, :-1])
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        result.append(loss.item())
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_follow_the_reference(dtype):
    source = pathlib.Path(reference.__file__).read_bytes() + pathlib.Path(__file__).read_bytes()
    text = torch.frombuffer(bytearray(source), dtype=torch.uint8).long()
    ours = losses(ta.differential_threshold_rela, dtype, text)
    exact = losses(reference.differential_threshold_rela, dtype, text)
    difference = max(abs(a - b) for a, b in zip(ours, exact, strict=True))
    print(f"{dtype}: largest difference {difference:.2e} nat in {STEPS} steps, last loss {ours[-1]:.4f}")
    assert exact[-1] < exact[0] - 1.0, "the model does not learn, so nothing is compared"
    assert difference <= 0.01
