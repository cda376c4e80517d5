"""The published names against the published formulas, written out here from the published code's description."""

from __future__ import annotations

import pytest
import torch

from threshold_attention import compat


def published_view(q, k, v, beta, power, leak=False):
    """Scores, masked scores set to 0, tau = beta sqrt(2 log(i + 1) / D), rectified power, values."""
    length, dim = q.shape[-2:]
    scores = q @ k.transpose(-1, -2)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    scores = torch.where(causal, scores, 0.0)
    tau = beta * (2.0 * torch.arange(1, length + 1, dtype=q.dtype).log() / dim).sqrt()[:, None]
    r = (scores - tau).clamp_min(0.0)
    if power == 2.0:
        weights = r * r
    elif power == 1.0:
        weights = r
    else:
        weights = torch.where(r > 0, (power * (r + 1e-10).log()).exp(), 0.0)
    return (weights if leak else weights * causal) @ v


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    return [torch.randn(2, 3, 50, 16, dtype=torch.float64) for _ in range(5)]


@pytest.mark.parametrize("power", [1.0, 2.0, 2.5])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_threshold_rela_does_not_normalize(inputs, beta, power):
    q, k, v = inputs[:3]
    expected = published_view(q / 4, k / 4, v, beta, power)
    # 1e-10 inside the published logarithm moves a weight by p r^(p-1) 1e-10.
    torch.testing.assert_close(
        compat.threshold_rela_triton(q / 4, k / 4, v, beta, power), expected, rtol=1e-7, atol=1e-7
    )
    default = compat.threshold_rela_triton(q / 4, k / 4, v, torch.tensor(beta))
    torch.testing.assert_close(default, published_view(q / 4, k / 4, v, beta, 2.0))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("lam", [-0.5, 0.0, 0.3, 1.0, 2.0])
def test_differential_takes_both_queries_first_and_clamps_lambda(inputs, lam, normalize):
    q1, q2, k1, k2, v = inputs
    prepare = unit if normalize else (lambda x: x / 4)
    a, b, c, d = (prepare(x) for x in (q1, q2, k1, k2))
    expected = published_view(a, c, v, 0.5, 2.0) - min(max(lam, 0.0), 1.0) * published_view(b, d, v, 0.5, 2.0)
    given = inputs if normalize else [a, b, c, d, v]
    ours = compat.differential_threshold_rela_triton(
        *given, 0.5, torch.tensor(lam, dtype=torch.float64), normalize=normalize
    )
    torch.testing.assert_close(ours, expected)
    by_name = compat.differential_threshold_rela_triton(
        q1=given[0],
        q2=given[1],
        k1=given[2],
        k2=given[3],
        v=given[4],
        beta=0.5,
        lambda_param=lam,
        relu_power=2.0,
        normalize=normalize,
    )
    assert torch.equal(ours, by_name)


def test_normalizing_is_the_default(inputs):
    given = compat.differential_threshold_rela_triton(*inputs, 0.5, 0.3)
    assert torch.equal(given, compat.differential_threshold_rela_triton(*inputs, 0.5, 0.3, 2.0, True))


def test_gradients_reach_beta_and_lambda(inputs):
    beta = torch.tensor(0.5, requires_grad=True)
    lam = torch.tensor(0.3, requires_grad=True)
    compat.differential_threshold_rela_triton(*inputs, beta, lam).sum().backward()
    assert beta.grad != 0
    assert lam.grad != 0


def test_negative_beta_does_not_leak_the_future(inputs):
    q, k, v = (unit(inputs[0]), unit(inputs[1]), inputs[2])
    ours = compat.threshold_rela_triton(q, k, v, -0.5)
    torch.testing.assert_close(ours, published_view(q, k, v, -0.5, 2.0))
    assert (ours - published_view(q, k, v, -0.5, 2.0, leak=True)).abs().max() > 0.01
