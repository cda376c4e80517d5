"""What PyTorch's subsystems ask of the packed operators: opcheck, compile, autocast, double backward, meta tensors."""

from __future__ import annotations

import pytest
import torch
from packed_inputs import PACKINGS, gradients, packed_inputs

import threshold_attention as ta

OPERATORS = torch.ops.threshold_attention
LENGTHS = PACKINGS["fewer queries than keys"]


def forward_arguments(packed, views):
    t = {name: x.transpose(0, 1)[None] if x.dim() == 3 else x for name, x in packed.tensors.items()}
    t = {name: x.detach().requires_grad_(packed.tensors[name].requires_grad) for name, x in t.items()}
    second = (t["q2"], t["k2"]) if views == 2 else (None, None)
    lam = t["lam"] if views == 2 else None
    longest = packed.longest()
    return (
        (t["q1"], t["k1"], *second, t["v"], t["beta"], lam, packed.cu_seqlens_q, packed.cu_seqlens_k),
        (longest["max_seqlen_q"], longest["max_seqlen_k"]),
        (1.0, 2.0, True),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("views", [1, 2])
def test_opcheck_forward(views, requires_grad, dtype):
    packed = packed_inputs(LENGTHS, views=views, requires_grad=requires_grad, dtype=dtype, key_heads=2)
    tensors, lengths, options = forward_arguments(packed, views)
    torch.library.opcheck(OPERATORS.forward_packed.default, (*tensors, *lengths, *options, False, True))
    torch.library.opcheck(OPERATORS.forward_packed.default, (*tensors, *lengths, *options, True, False))


@pytest.mark.parametrize("mask", [[True] * 7, [False, True, False, True, False, True, False]])
@pytest.mark.parametrize("views", [1, 2])
def test_opcheck_backward(views, mask):
    packed = packed_inputs(LENGTHS, views=views, requires_grad=False)
    tensors, lengths, options = forward_arguments(packed, views)
    output, _, index = OPERATORS.forward_packed(*tensors, *lengths, *options, True, False)
    arguments = (torch.ones_like(output), *tensors, *lengths, index, *options, mask)
    torch.library.opcheck(OPERATORS.backward_packed.default, arguments)


@pytest.mark.parametrize("bounds", [{}, {"max_seqlen_q": 64, "max_seqlen_k": 130}])
def test_opcheck_public_operators(bounds):
    packed = packed_inputs(LENGTHS, query_heads=6, key_heads=2, value_dim=32)
    t, offsets = packed.tensors, (packed.cu_seqlens_q, packed.cu_seqlens_k)
    one_view = (t["q1"], t["k1"], t["v"], *offsets, t["beta"])
    torch.library.opcheck(OPERATORS.threshold_rela_varlen.default, one_view, bounds)
    two_views = (t["q1"], t["k1"], t["q2"], t["k2"], t["v"], *offsets, t["lam"], t["beta"])
    options = {"power": 1.5, "return_statistics": True}
    torch.library.opcheck(OPERATORS.differential_threshold_rela_varlen.default, two_views, bounds | options)


@pytest.mark.parametrize(("dynamic", "bounded"), [(False, True), (True, False), (True, True)])
def test_compile_fullgraph(dynamic, bounded):
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, dynamic=dynamic)
    def compiled(packed, bounds):
        output, survivors = packed.attend(ta, **bounds, return_statistics=True)
        return output * 2, survivors

    for lengths in (LENGTHS, PACKINGS["training"], [(5, 9), (20, 20)]):
        packed = packed_inputs(lengths)
        bounds = packed.longest() if bounded else {}
        expected, expected_survivors = packed.attend(ta, return_statistics=True)
        output, survivors = compiled(packed, bounds)
        torch.testing.assert_close(output, expected * 2)
        assert torch.equal(survivors, expected_survivors)
        expected_gradients = gradients(expected * 2, packed)
        for name, gradient in gradients(output, packed).items():
            torch.testing.assert_close(gradient, expected_gradients[name], msg=name)


def test_compiled_inference_serves_many_packings_with_one_graph():
    torch._dynamo.reset()
    compilations = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, dynamic=True, backend=compilations)
    def compiled(q, k, v, cu_seqlens_q, cu_seqlens_k):
        return ta.threshold_rela_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, beta=0.5)

    with torch.no_grad():
        for lengths in ([(20, 20), (3, 5)], [(7, 9), (30, 31), (2, 2)], [(10, 12), (5, 5), (5, 5), (9, 9)]):
            packed = packed_inputs(lengths, requires_grad=False)
            t, offsets = packed.tensors, (packed.cu_seqlens_q, packed.cu_seqlens_k)
            arguments = (t["q1"], t["k1"], t["v"], *offsets)
            assert torch.equal(compiled(*arguments), ta.threshold_rela_varlen(*arguments, beta=0.5))
    assert compilations.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_the_autocast_dtype(dtype):
    packed = packed_inputs(LENGTHS)
    with torch.autocast("cpu", dtype=dtype):
        output = packed.attend(ta)
    assert output.dtype == dtype
    output.float().square().sum().backward()
    assert packed.tensors["q1"].grad.dtype == torch.float32
    narrow = packed_inputs(LENGTHS, requires_grad=False)
    narrow.tensors = {name: x.to(dtype) if x.dim() == 3 else x for name, x in narrow.tensors.items()}
    assert torch.equal(output, narrow.attend(ta))


def test_double_backward_is_refused():
    packed = packed_inputs(LENGTHS, dtype=torch.float64)
    (first,) = torch.autograd.grad(packed.attend(ta).sum(), [packed.tensors["q1"]], create_graph=True)
    with pytest.raises(NotImplementedError, match="double backward is not implemented"):
        first.sum().backward()


def test_meta_tensors_have_the_shapes_of_real_ones():
    packed = packed_inputs(LENGTHS, query_heads=6, key_heads=2, value_dim=32)
    real, real_survivors = packed.attend(ta, return_statistics=True)
    packed.tensors = {name: x.to("meta") for name, x in packed.tensors.items()}
    packed.cu_seqlens_q, packed.cu_seqlens_k = packed.cu_seqlens_q.to("meta"), packed.cu_seqlens_k.to("meta")
    meta, meta_survivors = packed.attend(ta, return_statistics=True)
    assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())
    assert meta_survivors.shape == real_survivors.shape


def test_the_saved_index_needs_no_offsets_and_inference_writes_none():
    packed = packed_inputs([(100, 100), (28, 28)], requires_grad=False)
    tensors, _, options = forward_arguments(packed, 2)
    sizes = [
        OPERATORS.forward_packed(*tensors, *bounds, *options, save_index, False)[2].numel()
        for bounds, save_index in (((100, 100), True), ((128, 128), True), ((100, 100), False))
    ]
    # (128 / 64 + 2) row tiles, one 64-bit word for up to 1024 keys; 2 views, 4 heads.
    assert sizes == [4 * 8 * 2 * 4, 4 * 8 * 2 * 4, 0]
