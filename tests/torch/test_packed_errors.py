"""Wrong offsets raise errors that name the argument, its value and what was expected, before anything is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from packed_inputs import packed_inputs

import threshold_attention as ta

LENGTHS = [(4, 5), (0, 0), (6, 7)]


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def call(*, device: str = "cpu", views: int = 2, tensors=None, cu_seqlens_q=None, cu_seqlens_k=None, **options):
    packed = packed_inputs(LENGTHS, views=views, requires_grad=False)
    packed.cu_seqlens_q = packed.cu_seqlens_q if cu_seqlens_q is None else cu_seqlens_q
    packed.cu_seqlens_k = packed.cu_seqlens_k if cu_seqlens_k is None else cu_seqlens_k
    packed.cu_seqlens_q, packed.cu_seqlens_k = packed.cu_seqlens_q.to(device), packed.cu_seqlens_k.to(device)
    for name, change in (tensors or {}).items():
        packed.tensors[name] = change(packed.tensors[name])
    packed.tensors = {name: x.to(device) for name, x in packed.tensors.items()}
    return packed.attend(ta, **options)


WRONG_FORMS = [
    ({"cu_seqlens_q": int32(0, 4, 4, 10).long()}, r"cu_seqlens_q: expected dtype int32, got Long"),
    ({"cu_seqlens_k": int32(0, 5, 5, 12).float()}, r"cu_seqlens_k: expected dtype int32, got Float"),
    ({"cu_seqlens_q": int32(0, 4, 4, 10)[None]}, r"cu_seqlens_q: expected shape \(documents \+ 1,\).*\[1, 4\]"),
    ({"cu_seqlens_q": int32(0)}, r"cu_seqlens_q: expected shape \(documents \+ 1,\) for one or more.*\[1\]"),
    ({"cu_seqlens_k": int32(0, 5, 12)}, r"cu_seqlens_k: expected the shape of cu_seqlens_q, \[4\], got \[3\]"),
    ({"max_seqlen_q": -1}, r"max_seqlen_q: expected 0 or more, or None, got -1"),
    (
        {"tensors": {"q1": lambda q: q[None]}},
        r"q1?: expected 3 dimensions \(total length, heads, dim\).*\[1, 10, 4, 16\]",
    ),
    ({"tensors": {"k1": lambda k: k[:, :3]}}, r"k: expected a number of heads that divides the 4 heads of q"),
    ({"tensors": {"v": lambda v: v[:5]}}, r"v: expected the batch, heads and length of k"),
    ({"tensors": {"k1": lambda k: k[:9]}}, r"q: expected at most as many rows as k has, 9"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(("changes", "message"), WRONG_FORMS)
def test_wrong_forms(device, views, changes, message):
    with pytest.raises(ValueError, match=message):
        call(device=device, views=views, **changes)


WRONG_VALUES = [
    ({"cu_seqlens_q": int32(1, 4, 4, 10)}, r"cu_seqlens_q: expected 0 first, got 1"),
    ({"cu_seqlens_k": int32(-1, 5, 5, 12)}, r"cu_seqlens_k: expected 0 first, got -1"),
    (
        {"cu_seqlens_q": int32(0, 4, 3, 10)},
        r"cu_seqlens_q: expected offsets that never decrease, got 4 and then 3 for document 1",
    ),
    ({"cu_seqlens_q": int32(0, 4, 4, 9)}, r"cu_seqlens_q: expected the total length 10 last, got 9"),
    ({"cu_seqlens_k": int32(0, 5, 5, 11)}, r"cu_seqlens_k: expected the total length 12 last, got 11"),
    (
        {"cu_seqlens_k": int32(0, 7, 7, 12)},
        r"cu_seqlens_q: expected at most as many queries as keys in document 2, 5, got 6",
    ),
    ({"cu_seqlens_q": int32(0, 4, 4, 12)}, r"cu_seqlens_q: expected the total length 10 last, got 12"),
    ({"max_seqlen_k": 5}, r"max_seqlen_k: expected at least the length of document 2, 7, got 5"),
    ({"max_seqlen_q": 6, "max_seqlen_k": 5}, r"max_seqlen_k: expected at least the length of document 2, 7, got 5"),
    ({"max_seqlen_q": 5}, r"max_seqlen_q: expected at least the length of document 2, 6, got 5"),
    ({"max_seqlen_k": 6}, r"max_seqlen_k: expected at least the length of document 2, 7, got 6"),
]


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(("changes", "message"), WRONG_VALUES)
def test_wrong_values_on_the_cpu(views, changes, message):
    with pytest.raises(ValueError, match=message):
        call(views=views, **changes)


@pytest.mark.parametrize("name", ["max_seqlen_q", "max_seqlen_k"])
@pytest.mark.parametrize("value", [torch.tensor(12), 12.0, "12", True])
def test_lengths_of_another_type(name, value):
    with pytest.raises(TypeError, match=f"{name}: expected an int or None, got {type(value).__name__}"):
        call(**{name: value})


@pytest.mark.parametrize("views", [1, 2])
def test_lengths_may_be_integers_of_numpy(views):
    assert torch.equal(call(views=views, max_seqlen_q=np.int64(6), max_seqlen_k=np.int32(7)), call(views=views))
    with pytest.raises(ValueError, match="max_seqlen_q: expected at least the length of document 2, 6, got 5"):
        call(views=views, max_seqlen_q=np.int64(5))


def test_offsets_on_another_device():
    packed = packed_inputs(LENGTHS)
    packed.cu_seqlens_k = packed.cu_seqlens_k.to("meta")
    with pytest.raises(ValueError, match="cu_seqlens_k: expected the device of q, cpu, got meta"):
        packed.attend(ta)


def test_the_operator_itself_wants_one_batch_element():
    x = torch.randn(2, 1, 4, 8)
    offsets = int32(0, 4)
    with pytest.raises(ValueError, match=r"q: expected batch size 1 with packed documents, got shape \[2, 1, 4, 8\]"):
        torch.ops.threshold_attention.forward_packed(
            x, x, None, None, x, torch.ones(1), None, offsets, offsets, 4, 4, 1.0, 2.0, True, False, False
        )


def test_errors_surface_from_compiled_code():
    torch._dynamo.reset()
    compiled = torch.compile(lambda *args: ta.threshold_rela_varlen(*args), fullgraph=True)
    x = torch.randn(4, 2, 8)
    with pytest.raises(Exception, match="cu_seqlens_q: expected dtype int32"):
        compiled(x, x, x, torch.tensor([0, 4]), int32(0, 4))


def test_a_foreign_survivor_index_is_refused():
    x, offsets = torch.randn(1, 1, 4, 8), int32(0, 4)
    index = torch.empty(12345, dtype=torch.uint8)
    arguments = (x, x, None, None, x, torch.ones(1), None, offsets, offsets, 4, 4, index, 1.0, 2.0, True, [True] * 7)
    with pytest.raises(ValueError, match=r"index: expected the .* bytes that forward wrote.*got 12345"):
        torch.ops.threshold_attention.backward_packed(torch.ones_like(x), *arguments)


def test_wrong_offsets_are_refused_by_the_backward_too():
    x = torch.randn(1, 1, 4, 8)
    arguments = (x, x, None, None, x, torch.ones(1), None)
    offsets, wrong = int32(0, 2, 4), int32(0, 3, 2)
    _, _, index = torch.ops.threshold_attention.forward_packed(
        *arguments, offsets, offsets, 4, 4, 1.0, 2.0, True, True, False
    )
    with pytest.raises(ValueError, match="cu_seqlens_q: expected offsets that never decrease"):
        torch.ops.threshold_attention.backward_packed(
            torch.ones_like(x), *arguments, wrong, offsets, 4, 4, index, 1.0, 2.0, True, [True] * 7
        )


def test_cuda_kernels_are_registered():
    for operator in ("forward_packed", "backward_packed"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"threshold_attention::{operator}", "CUDA")
