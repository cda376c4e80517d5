"""The layer ThresholdDifferentialAttention."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from threshold_attention import ThresholdDifferentialAttention, reference
from threshold_attention.rotary_embedding import apply_rotary_embedding


def make(**options) -> ThresholdDifferentialAttention:
    torch.manual_seed(0)
    return ThresholdDifferentialAttention(64, 4, beta=0.6, **options)


def by_hand(layer: ThresholdDifferentialAttention, x: torch.Tensor) -> torch.Tensor:
    """The layer written out for the default options."""
    batch, length, width = x.shape
    heads, dim = layer.n_heads, layer.head_dim

    def split(matrix: torch.Tensor) -> torch.Tensor:
        return (x @ matrix.T).reshape(batch, length, -1, matrix.shape[0] // heads).transpose(1, 2)

    def rotate(q: torch.Tensor) -> torch.Tensor:
        pairs = torch.complex(q[..., : dim // 2], q[..., dim // 2 :])
        angle = torch.arange(length)[:, None] * 10000.0 ** (-2.0 * torch.arange(dim // 2) / dim)
        turned = pairs * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((turned.real, turned.imag), -1)

    q1, k1, q2, k2 = (rotate(split(m.weight)) for m in (layer.query1, layer.key1, layer.query2, layer.key2))
    u = reference.differential_threshold_rela(q1, k1, q2, k2, split(layer.value.weight), lam=layer.lam, beta=layer.beta)
    y = layer.head_norm.weight[:, None] * u / (u.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return y.transpose(1, 2).reshape(batch, length, width) @ layer.output.weight.T


def test_forward_is_the_model_written_out():
    layer = make()
    x = torch.randn(2, 24, 64)
    torch.testing.assert_close(layer(x), by_hand(layer, x), rtol=1e-4, atol=1e-5)


def test_defaults_are_those_of_the_language_model():
    layer = ThresholdDifferentialAttention(64, 4)
    assert torch.equal(layer.beta, torch.ones(4))
    assert torch.equal(layer.lam, torch.full((4,), 0.5))
    assert (layer.kappa, layer.power, layer.head_norm.eps, layer.rope_theta) == (1.0, 2.0, 1e-6, 10_000.0)
    matrices = [f"{name}.weight" for name in ("query1", "key1", "query2", "key2", "value", "output")]
    assert set(layer.state_dict()) == {*matrices, "head_norm.weight", "beta", "lambda"}
    assert layer.head_norm.weight.shape == (4, 16)
    assert {name for name, _ in layer.named_parameters()} == set(layer.state_dict())


def test_halved_heads_have_as_many_weights_as_softmax_attention():
    layer = make(view_heads="halved")
    assert sum(p.numel() for name, p in layer.named_parameters() if p.dim() == 2 and "norm" not in name) == 4 * 64 * 64
    assert layer(torch.randn(2, 9, 64)).shape == (2, 9, 64)


def test_grouped_query_heads():
    layer = make(n_kv_heads=2)
    assert layer.key1.weight.shape == (32, 64)
    assert layer.value.weight.shape == (32, 64)
    assert layer(torch.randn(2, 9, 64)).shape == (2, 9, 64)


def test_causality():
    layer = make().eval()
    x = torch.randn(1, 30, 64)
    y = layer(x)
    x[:, 17:] += 1.0
    assert torch.equal(layer(x)[:, :17], y[:, :17])


def test_statistics():
    y, survivors = make()(torch.randn(2, 24, 64), return_statistics=True)
    assert y.shape == (2, 24, 64)
    assert survivors.shape == (2, 4, 24)
    assert survivors.dtype == torch.int32
    assert (survivors <= torch.arange(1, 25)).all()


@pytest.mark.parametrize("compiled", [False, True])
def test_lambda_is_projected_in_training_only(compiled):
    torch._dynamo.reset()
    layer = make()
    run = torch.compile(layer, fullgraph=True) if compiled else layer
    x = torch.randn(1, 8, 64)
    with torch.no_grad():
        layer.lam.copy_(torch.tensor([-0.5, 0.2, 1.0, 1.7]))
    layer.eval()
    run(x)
    assert layer.lam[0] == -0.5
    layer.train()
    run(x)
    torch.testing.assert_close(layer.lam.detach(), torch.tensor([0.0, 0.2, 1.0, 1.0]))


def test_one_layer_may_stand_twice_in_a_graph():
    layer = make()
    x = torch.randn(1, 12, 64)
    with torch.no_grad():
        layer.lam.fill_(1.5)
    (layer(layer(x)).sum() + layer(2 * x).sum()).backward()
    assert layer.lam.grad is not None
    assert layer.lam.grad.isfinite().all()


def test_every_parameter_learns():
    layer = make()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.0)
    x, target = torch.randn(4, 32, 64), torch.randn(4, 32, 64)
    before = copy.deepcopy(layer.state_dict())
    losses = []
    for _ in range(30):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for name, value in layer.state_dict().items():
        assert not torch.equal(value, before[name]), f"{name} did not move"


def test_learning_of_beta_and_lambda_can_be_switched_off():
    layer = make(learn_beta=False, learn_lam=False)
    assert {"beta", "lambda"} <= set(layer.state_dict())
    assert not {"beta", "lambda"} & {name for name, _ in layer.named_parameters()}
    layer(torch.randn(1, 8, 64)).sum().backward()


def test_deepcopy_state_dict_and_pickle():
    layer = make()
    x = torch.randn(2, 16, 64)
    expected = layer(x)
    fresh = ThresholdDifferentialAttention(64, 4)
    fresh.load_state_dict(layer.state_dict())
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    clones = [copy.deepcopy(layer), fresh, pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)]
    for clone in clones:
        assert torch.equal(clone(x), expected)
    clones[0].lam.data.fill_(0.1)
    assert layer.lam[0] == 0.5


def test_compile_fullgraph_training_step():
    torch._dynamo.reset()
    layer, twin = make(), make()
    compiled = torch.compile(twin, fullgraph=True)
    x = torch.randn(2, 24, 64)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).square().sum().backward()
    layer(x).square().sum().backward()
    for (name, p), q in zip(layer.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_autocast_and_bfloat16():
    layer = make()
    x = torch.randn(2, 24, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    low = make().to(torch.bfloat16)
    assert low(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant):
    gradients = []
    for checkpointed in (False, True):
        layer = make()
        x = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(3)).requires_grad_()
        y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=use_reentrant) if checkpointed else layer(x)
        y.square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in layer.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_rotary_embedding_turns_pairs_and_keeps_relative_positions():
    torch.manual_seed(0)
    q, k = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    rows_q = apply_rotary_embedding(q.expand(1, 1, 10, 8))[0, 0]
    rows_k = apply_rotary_embedding(k.expand(1, 1, 10, 8))[0, 0]
    torch.testing.assert_close(rows_q[0], q)
    torch.testing.assert_close(rows_q[7] @ rows_k[4], rows_q[5] @ rows_k[2])
    angle = torch.tensor(3.0, dtype=torch.float64)
    torch.testing.assert_close(rows_q[3, 0], q[0] * angle.cos() - q[4] * angle.sin())


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((64, 5), {}, "n_heads: expected a divisor of d_model = 64, got 5"),
        ((64, 4), {"view_heads": "half"}, "view_heads: expected 'full' or 'halved', got 'half'"),
        ((63, 3), {"view_heads": "halved"}, "n_heads: expected an even number"),
        ((64, 4), {"n_kv_heads": 3}, "n_kv_heads: expected a divisor of the 4 query heads, got 3"),
        ((12, 4), {}, "rope_theta: expected None for the odd head dimension 3"),
        ((64, 4), {"lam": float("nan")}, "lam: expected a finite number, got nan"),
    ],
)
def test_wrong_options(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ThresholdDifferentialAttention(*arguments, **options)


def test_wrong_input():
    with pytest.raises(ValueError, match=r"x: expected shape \(B, T, 64\), got \(2, 9, 32\)"):
        make()(torch.randn(2, 9, 32))
