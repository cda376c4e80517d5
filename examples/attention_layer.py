"""A tiny causal model with threshold differential attention: learn to copy a token seen some positions before.

Every sequence holds random tokens; the target at position t is the token that followed the previous occurrence of the
token at t. One layer of attention over pairs of neighbours can learn that. Run: python examples/attention_layer.py
"""

from __future__ import annotations

import torch
from torch import nn

from threshold_attention import ThresholdDifferentialAttention

VOCABULARY, WIDTH, LENGTH = 16, 64, 48


class CopyModel(nn.Module):
    """Embedding, a mix of each token with its predecessor, two attention layers, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attentions = nn.ModuleList(ThresholdDifferentialAttention(WIDTH, 4, beta=0.5) for _ in range(2))
        self.previous = nn.Linear(WIDTH, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        x = x + self.previous(torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), dim=1))
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            x = x + attention(norm(x))
        return self.head(x)


def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A sequence of LENGTH / 2 tokens, twice; the second half is predictable."""
    half = torch.randint(VOCABULARY, (32, LENGTH // 2), generator=generator)
    tokens = torch.cat((half, half), dim=1)
    return tokens[:, :-1], tokens[:, 1:]


def main() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = CopyModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(301):
        tokens, targets = batch(generator)
        logits = model(tokens)
        second_half = slice(LENGTH // 2, None)
        loss = nn.functional.cross_entropy(logits[:, second_half].flatten(0, 1), targets[:, second_half].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            accuracy = (logits[:, second_half].argmax(-1) == targets[:, second_half]).float().mean()
            print(f"step {step:3d}  loss {loss.item():.3f}  accuracy {accuracy.item():.2f}")
    _, survivors = model.attentions[0](model.norms[0](model.embedding(tokens)), return_statistics=True)
    pairs = survivors.shape[-1] * (survivors.shape[-1] + 1) / 2
    print(f"exact zeros among the weights of layer 0: {100 * (1 - survivors.sum(-1).float().mean() / pairs):.1f} %")


if __name__ == "__main__":
    main()
