"""TRA in FlexAttention and in plain PyTorch, the benchmark's peers, compute what the operator's reference computes."""

from __future__ import annotations

import pytest
import torch

from bench.gpu.flex_attention import causal_mask, flex_threshold_rela, log_weight, thresholds
from bench.gpu.naive_attention import naive_threshold_rela
from threshold_attention import reference

LENGTH, DIM = 150, 16


def flex(q, k, v, tau, power):
    q, k, v = (x.detach() for x in (q, k, v))  # FlexAttention has no gradients on a CPU
    return flex_threshold_rela(q, k, v, tau, causal_mask(LENGTH, "cpu"), power)


def naive(q, k, v, tau, power):
    return naive_threshold_rela(q, k, v, tau, power)


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 3, LENGTH, DIM, generator=generator).requires_grad_() for _ in range(3)]


# FlexAttention without torch.compile warns that it is slow and that the backward may be wrong; the values are not.
@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*")
@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("peer", [flex, naive])
def test_peer_gives_the_reference_values(tensors, peer, beta, power):
    with torch.no_grad():
        expected, survivors = reference.threshold_rela(*tensors, beta=beta, power=power, return_statistics=True)
        found = peer(*tensors, thresholds(LENGTH, DIM, beta, "cpu"), power)
    if beta == 1.0:
        assert (survivors == 0).any(), "no row without a survivor was tried"
        assert (found[survivors == 0] == 0).all()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_naive_gradients_are_those_of_the_reference(tensors, beta):
    cotangent = torch.ones(2, 3, LENGTH, DIM)
    expected = torch.autograd.grad(reference.threshold_rela(*tensors, beta=beta), tensors, cotangent)
    found = torch.autograd.grad(naive(*tensors, thresholds(LENGTH, DIM, beta, "cpu"), 2.0), tensors, cotangent)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("power", [2.0, 3.0])
def test_gradients_through_the_logarithm_of_the_weights(tensors, power):
    """What FlexAttention differentiates, on a plain softmax. beta is so low that every row has a survivor."""
    q, k, v = tensors
    beta = -0.5
    tau = thresholds(LENGTH, DIM, beta, "cpu")
    future = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    # Row 0 has the threshold 0 and one key: make that pair survive.
    with torch.no_grad():
        k[:, :, 0] = q[:, :, 0]
    scores = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).transpose(-1, -2)
    logits = log_weight(scores, tau[:, None], power).masked_fill(future, -torch.inf)
    output = (logits.softmax(-1) @ v) * logits.logsumexp(-1, keepdim=True).exp()
    expected = reference.threshold_rela(q, k, v, beta=beta, power=power)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    cotangent = torch.ones_like(output)
    for x, y in zip(*(torch.autograd.grad(u, tensors, cotangent) for u in (output, expected)), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)
