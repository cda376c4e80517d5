"""Packed documents: values and gradients are those of one call per document."""

from __future__ import annotations

import pytest
import torch
from packed_inputs import PACKINGS, gradients, packed_inputs

import threshold_attention as ta
from threshold_attention import reference

HEADS = [
    {},
    {"query_heads": 6, "key_heads": 2, "dim": 24, "value_dim": 48},
    {"query_heads": 3, "key_heads": 1, "dim": 5},
]


def assert_agree(ours: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    """Sums of up to a few hundred float64 terms, each no larger than a few times the largest result."""
    assert ours.shape == expected.shape, name
    if ours.numel() == 0:
        return
    error = (ours - expected).abs().max()
    assert error <= 1e-12 * expected.abs().max(), f"{name} is off by {error}"


@pytest.mark.parametrize("options", [{}, {"power": 1.0}, {"power": 1.5, "kappa": 3.0, "normalize": False}])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("views", [1, 2])
def test_float64_agrees_with_plain_pytorch(views, packing, heads, options):
    packed = packed_inputs(PACKINGS[packing], views=views, dtype=torch.float64, **heads)
    ours, survivors = packed.attend(ta, **options, return_statistics=True)
    expected, expected_survivors = packed.attend(reference, **options, return_statistics=True)
    assert_agree(ours, expected, "output")
    assert survivors.dtype == torch.int32
    assert torch.equal(survivors, expected_survivors)
    assert survivors.any()
    expected_gradients = gradients(expected, packed)
    for name, gradient in gradients(ours, packed).items():
        assert_agree(gradient, expected_gradients[name], name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("views", [1, 2])
def test_bits_are_those_of_one_call_per_document(views, packing, dtype):
    threads = torch.get_num_threads()
    # With more threads a document alone may be divided otherwise than among others, and its sums with it.
    torch.set_num_threads(1)
    try:
        packed = packed_inputs(PACKINGS[packing], views=views, dtype=dtype, key_heads=2, dim=64)
        ours, survivors = packed.attend(ta, **packed.longest(), return_statistics=True)
        expected, expected_survivors = packed.attend_one_by_one(ta, return_statistics=True)
        assert torch.equal(ours, expected)
        assert torch.equal(survivors, expected_survivors)
        expected_gradients = gradients(expected, packed)
        for name, gradient in gradients(ours, packed).items():
            if name in ("beta", "lam"):  # sums over documents, there rounded after every one
                torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-6, atol=1e-6)
            else:
                assert torch.equal(gradient, expected_gradients[name]), name
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("packing", ["training", "fewer queries than keys"])
def test_bounds_of_the_lengths_change_nothing(packing):
    packed = packed_inputs(PACKINGS[packing], key_heads=2)
    queries = packed.cu_seqlens_q[-1].item()  # of "training": more than any document has keys
    results = []
    for bounds in (
        {},
        packed.longest(),
        {"max_seqlen_k": 130},
        packed.longest() | {"max_seqlen_q": queries},
        {"max_seqlen_q": 100_000, "max_seqlen_k": 100_000},
    ):
        output = packed.attend(ta, **bounds)
        results.append([output, *gradients(output, packed).values()])
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("layout", ["heads first", "sliced", "strided rows", "strided elements"])
def test_any_strides_give_the_numbers_of_contiguous_tensors(layout):
    packed = packed_inputs(PACKINGS["fewer queries than keys"], key_heads=2, requires_grad=False)

    def lay_out(x: torch.Tensor) -> torch.Tensor:
        if x.dim() < 3:
            return x
        if layout == "heads first":
            return x.transpose(0, 1).contiguous().transpose(0, 1)
        if layout == "sliced":
            wide = torch.full((*x.shape[:-1], x.shape[-1] + 5), float("nan"))
            wide[..., 3:-2] = x
            return wide[..., 3:-2]
        return (
            x.repeat_interleave(2, dim=0)[::2] if layout == "strided rows" else x.repeat_interleave(2, dim=2)[..., ::2]
        )

    results = []
    for change in (lambda x: x, lay_out):
        packed.tensors = {name: change(x.detach()).requires_grad_() for name, x in packed.tensors.items()}
        output = packed.attend(ta)
        results.append([output, *gradients(output, packed).values()])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_output_is_contiguous_for_contiguous_queries():
    packed = packed_inputs(PACKINGS["training"])
    assert packed.attend(ta).is_contiguous()


@pytest.mark.parametrize("lengths", [[(0, 0), (0, 0)], [(0, 5), (0, 3)]])
def test_no_queries_give_empty_results_and_zero_gradients(lengths):
    packed = packed_inputs(lengths)
    output, survivors = packed.attend(ta, return_statistics=True)
    assert output.shape == (0, 4, 16)
    assert survivors.shape == (4, 0)
    for name, gradient in gradients(output, packed).items():
        assert gradient.shape == packed.tensors[name].shape
        assert not gradient.any()


def test_keys_of_a_document_without_queries_get_zero_gradients():
    packed = packed_inputs([(20, 20), (0, 30), (10, 10)])
    for name, gradient in gradients(packed.attend(ta), packed).items():
        if name in ("k1", "k2", "v"):
            assert not gradient[20:50].any(), name
            assert gradient[:20].any(), name
            assert gradient[50:].any(), name


@pytest.mark.parametrize("views", [1, 2])
def test_gradcheck(views):
    packed = packed_inputs(
        [(3, 3), (1, 1), (0, 2), (2, 5)], views=views, query_heads=2, key_heads=1, dim=6, dtype=torch.float64, beta=0.3
    )

    def attend(*tensors):
        packed.tensors = packed.tensors | dict(zip(packed.names, tensors, strict=True))
        return packed.attend(ta)

    assert torch.autograd.gradcheck(attend, packed.leaves())


def test_scalar_parameters_receive_the_sum_over_heads_and_documents():
    packed = packed_inputs(PACKINGS["training"], dtype=torch.float64)
    scalars = {name: torch.tensor(0.4, dtype=torch.float64, requires_grad=True) for name in ("beta", "lam")}
    results = []
    for parameters in (scalars, {name: x.detach().expand(4).clone().requires_grad_() for name, x in scalars.items()}):
        packed.tensors = packed.tensors | parameters
        output = packed.attend(ta)
        shares = gradients(output, packed)
        results.append([output, shares["beta"].sum(), shares["lam"].sum()])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y)


def test_autograd_refuses_offsets_that_changed_before_the_backward():
    packed = packed_inputs([(3, 3), (4, 4)])
    output = packed.attend(ta)
    packed.cu_seqlens_q[1] = 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_many_short_documents_on_several_threads_are_repeatable():
    lengths = [(1 + d * 7 % 23, 1 + d * 7 % 23 + d % 3) for d in range(60)]
    lengths[13] = (200, 230)
    packed = packed_inputs(lengths, key_heads=2, dim=64)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        runs = []
        for _ in range(3):
            output = packed.attend(ta, **packed.longest())
            runs.append([output, *gradients(output, packed).values()])
    finally:
        torch.set_num_threads(threads)
    for again in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(runs[0], again, strict=True))
    torch.testing.assert_close(runs[0][0], packed.attend(reference), rtol=1e-4, atol=1e-5)
