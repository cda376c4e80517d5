"""What PyTorch's subsystems ask of an operator: opcheck, compile, autocast, checkpointing, double backward."""

from __future__ import annotations

import pytest
import torch
from attention_inputs import one_view, random_inputs, two_views

import threshold_attention as ta
from threshold_attention import reference

OPERATORS = torch.ops.threshold_attention


def forward_arguments(inputs, views):
    second = (inputs["q2"], inputs["k2"]) if views == 2 else (None, None)
    lam = inputs["lam"] if views == 2 else None
    return (inputs["q1"], inputs["k1"], *second, inputs["v"], inputs["beta"], lam, 1.0, 2.0, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("views", [1, 2])
def test_opcheck_forward(views, requires_grad, dtype):
    inputs = random_inputs(requires_grad=requires_grad, dtype=dtype)
    torch.library.opcheck(OPERATORS.forward.default, (*forward_arguments(inputs, views), False, True))
    torch.library.opcheck(OPERATORS.forward.default, (*forward_arguments(inputs, views), True, False))


@pytest.mark.parametrize("mask", [[True] * 7, [False, True, False, True, False, True, False]])
@pytest.mark.parametrize("views", [1, 2])
def test_opcheck_backward(views, mask):
    inputs = random_inputs()
    arguments = forward_arguments(inputs, views)
    output, _, index = OPERATORS.forward(*arguments, True, False)
    torch.library.opcheck(
        OPERATORS.backward.default, (torch.ones_like(output), *arguments[:7], index, *arguments[7:], mask)
    )


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_opcheck_public_operators(layout):
    inputs = random_inputs(requires_grad=True, query_heads=6, key_heads=2, value_dim=32)
    if layout == "transposed":
        inputs = {
            name: x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() if x.dim() == 4 else x
            for name, x in inputs.items()
        }
    args, kwargs = one_view(inputs)
    torch.library.opcheck(OPERATORS.threshold_rela.default, (*args, kwargs["beta"]))
    args, kwargs = two_views(inputs)
    torch.library.opcheck(
        OPERATORS.differential_threshold_rela.default,
        (*args, kwargs["lam"], kwargs["beta"]),
        {"power": 1.5, "return_statistics": True},
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(dynamic):
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, dynamic=dynamic)
    def compiled(inputs):
        args, kwargs = two_views(inputs)
        output, survivors = ta.differential_threshold_rela(*args, **kwargs, return_statistics=True)
        return output * 2, survivors

    for length in (20, 33, 47):
        inputs = random_inputs(requires_grad=True, query_length=length, key_length=length)
        eager_inputs = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
        args, kwargs = two_views(eager_inputs)
        expected, expected_survivors = ta.differential_threshold_rela(*args, **kwargs, return_statistics=True)
        output, survivors = compiled(inputs)
        torch.testing.assert_close(output, expected * 2)
        assert torch.equal(survivors, expected_survivors)
        output.square().sum().backward()
        (expected * 2).square().sum().backward()
        for name, x in inputs.items():
            torch.testing.assert_close(x.grad, eager_inputs[name].grad, msg=name)


def test_compiled_inference_serves_many_lengths_with_one_graph():
    torch._dynamo.reset()
    compilations = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, dynamic=True, backend=compilations)
    def compiled(q, k, v):
        return ta.threshold_rela(q, k, v, beta=0.5)

    with torch.no_grad():
        for length in (20, 33, 47, 64):
            inputs = random_inputs(query_length=length, key_length=length)
            args, _ = one_view(inputs)
            assert torch.equal(compiled(*args), ta.threshold_rela(*args, beta=0.5))
    assert compilations.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_the_autocast_dtype(dtype):
    inputs = random_inputs(requires_grad=True)
    args, kwargs = two_views(inputs)
    with torch.autocast("cpu", dtype=dtype):
        output = ta.differential_threshold_rela(*args, **kwargs)
    assert output.dtype == dtype
    expected = ta.differential_threshold_rela(*(x.to(dtype) for x in args), **kwargs)
    assert torch.equal(output, expected)
    output.float().square().sum().backward()
    assert inputs["q1"].grad.dtype == torch.float32
    assert inputs["beta"].grad.dtype == torch.float32
    mixed = [args[0].to(dtype), *args[1:]]
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(ta.differential_threshold_rela(*mixed, **kwargs), expected)
    with torch.autocast("cpu", dtype=dtype, enabled=False):
        assert ta.differential_threshold_rela(*args, **kwargs).dtype == torch.float32


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant):
    results = []
    for checkpointed in (False, True):
        inputs = random_inputs(requires_grad=True)
        values = list(inputs.values())

        def attend(q1, k1, q2, k2, v, beta, lam):
            return ta.differential_threshold_rela(q1, k1, q2, k2, v, beta=beta, lam=lam)

        if checkpointed:
            output = torch.utils.checkpoint.checkpoint(attend, *values, use_reentrant=use_reentrant)
        else:
            output = attend(*values)
        output.square().sum().backward()
        results.append([x.grad for x in values])
    for x, y in zip(*results, strict=True):
        assert torch.equal(x, y)


def test_double_backward_is_refused_and_the_reference_offers_it():
    inputs = random_inputs(dtype=torch.float64, requires_grad=True)
    args, kwargs = one_view(inputs)
    (first,) = torch.autograd.grad(ta.threshold_rela(*args, **kwargs).sum(), [args[0]], create_graph=True)
    with pytest.raises(NotImplementedError, match="double backward is not implemented"):
        first.sum().backward()
    (first,) = torch.autograd.grad(reference.threshold_rela(*args, **kwargs).sum(), [args[0]], create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), [args[0]])
    assert second.isfinite().all()


def test_meta_tensors_have_the_shapes_of_real_ones():
    inputs = random_inputs(query_heads=6, key_heads=2, value_dim=32, query_length=5)
    args, kwargs = two_views(inputs)
    real, real_survivors = ta.differential_threshold_rela(*args, **kwargs, return_statistics=True)
    meta, meta_survivors = ta.differential_threshold_rela(
        *(x.to("meta") for x in args), **{name: x.to("meta") for name, x in kwargs.items()}, return_statistics=True
    )
    assert meta.shape == real.shape
    assert meta.dtype == real.dtype
    assert meta.stride() == real.stride()
    assert meta_survivors.shape == real_survivors.shape


def test_backward_is_bitwise_repeatable():
    gradients = []
    for _ in range(3):
        inputs = random_inputs(requires_grad=True, query_length=150, key_length=150, dim=64)
        args, kwargs = two_views(inputs)
        ta.differential_threshold_rela(*args, **kwargs).square().sum().backward()
        gradients.append([x.grad for x in inputs.values()])
    for again in gradients[1:]:
        assert all(torch.equal(x, y) for x, y in zip(gradients[0], again, strict=True))
