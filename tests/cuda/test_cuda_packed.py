"""Packed documents on a CUDA device: values, gradients, graphs, and that the host reads no offset."""

from __future__ import annotations

import itertools

import pytest
import torch
from packed_inputs import PACKINGS, cotangent_of, gradients, packed_inputs
from test_cuda import assert_rule, naive, parameter_errors

import threshold_attention as ta
from threshold_attention import reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
OPERATORS = torch.ops.threshold_attention

LENGTHS = PACKINGS | {
    "long among short": [(3, 3), (700, 900), (1, 1), (64, 64), (0, 0), (300, 301)],
}
HEADS = [
    {"dim": 64},
    {"query_heads": 4, "key_heads": 2, "dim": 128},
    {"query_heads": 3, "key_heads": 1, "dim": 24, "value_dim": 48},
    {"query_heads": 2, "key_heads": 2, "dim": 64, "value_dim": 128},
]


def results(packed, **options) -> dict[str, torch.Tensor]:
    output = packed.attend(ta, **options)
    return {"output": output.detach()} | gradients(output, packed)


def exact_twin(packed):
    wide = packed_inputs([(0, 0)], views=packed.views, requires_grad=False)
    wide.lengths, wide.cu_seqlens_q, wide.cu_seqlens_k = packed.lengths, packed.cu_seqlens_q, packed.cu_seqlens_k
    wide.tensors = {name: x.detach().double().requires_grad_() for name, x in packed.tensors.items()}
    return wide


def assert_documents_keep_the_rule(packed, power: float) -> None:
    """The rule of test_cuda.py, its naive twin computed document by document."""
    ours, wide = results(packed, **packed.longest(), power=power), exact_twin(packed)
    cotangent = cotangent_of(ours["output"])
    expected = wide.attend(reference, power=power)
    exact = {"output": expected.detach()} | gradients(expected, wide, cotangent.double())
    twins = [
        (rows[0], *cases) for *cases, rows in zip(packed.documents(), wide.documents(), packed.rows(), strict=True)
    ]
    twins = [twin for twin in twins if twin[1]["q1"].shape[2] > 0]
    output = torch.cat([naive(inputs, power)[0].transpose(0, 1) for _, inputs, _ in twins])
    naive_results = {"output": output.detach()} | gradients(output, packed, cotangent)
    errors: dict[str, torch.Tensor] = {}
    for rows, *cases in twins:
        own = parameter_errors(*cases, power, cotangent[rows].transpose(0, 1)[None])
        errors = {name: errors.get(name, 0.0) + error for name, error in own.items()}
    assert_rule(ours, naive_results, exact, packed.tensors["v"].dtype, errors)


@pytest.mark.parametrize("power", [2.0, 3.0])
@pytest.mark.parametrize("heads", range(len(HEADS)))
@pytest.mark.parametrize("packing", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("views", [1, 2])
def test_values_and_gradients_keep_the_rule(views, dtype, packing, heads, power):
    packed = packed_inputs(LENGTHS[packing], views=views, device="cuda", dtype=dtype, **HEADS[heads])
    assert_documents_keep_the_rule(packed, power)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("views", [1, 2])
def test_survivors_are_those_outside_the_band_around_the_threshold(views, dtype):
    packed = packed_inputs(LENGTHS["long among short"], views=views, device="cuda", dtype=dtype, dim=64)
    _, ours = packed.attend(ta, return_statistics=True)
    band = {torch.float32: 1e-5, torch.bfloat16: 1.5e-3}[dtype]
    for (rows, _), case in zip(packed.rows(), exact_twin(packed).documents(), strict=True):
        keys, queries = case["k1"].shape[2], case["q1"].shape[2]
        position = torch.arange(keys - queries, keys, device="cuda")
        tau = case["beta"].reshape(-1, 1, 1) * (2 / 64 * (position + 1).double().log()).sqrt().reshape(-1, 1)
        unit = {name: torch.nn.functional.normalize(x, dim=-1) for name, x in case.items() if x.dim() == 4}
        past = torch.arange(keys, device="cuda") <= position.reshape(-1, 1)
        above = [
            torch.stack([(unit[f"q{n}"] @ unit[f"k{n}"].mT > tau + d) & past for n in range(1, views + 1)]).any(0)[0]
            for d in (band, -band)
        ]
        certain, possible = (x.sum(-1, dtype=torch.int32) for x in above)
        assert (ours[:, rows] >= certain).all()
        assert (ours[:, rows] <= possible).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bounds_of_the_lengths_change_nothing(dtype):
    packed = packed_inputs(LENGTHS["fewer queries than keys"], device="cuda", dtype=dtype, dim=64)
    first = results(packed)
    for bounds in (packed.longest(), {"max_seqlen_k": 130}, {"max_seqlen_q": 100_000, "max_seqlen_k": 100_000}):
        again = results(packed, **bounds)
        for name, expected in first.items():
            assert torch.equal(expected, again[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("views", [1, 2])
def test_is_bitwise_repeatable(views, dtype):
    packed = packed_inputs(LENGTHS["long among short"], views=views, device="cuda", dtype=dtype, dim=64)
    first = results(packed)
    for _ in range(30):
        again = results(packed)
        for name, expected in first.items():
            assert torch.equal(expected, again[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_document_does_not_disturb_its_neighbours(dtype):
    packed = packed_inputs([(50, 50), (20, 33), (64, 70)], device="cuda", dtype=dtype, dim=64)
    before = results(packed)
    with torch.no_grad():
        packed.tensors["k1"][53, 1] = float("nan")
    after = results(packed)
    for name, rows in (("output", (50, 70)), ("q1", (50, 70)), ("k1", (50, 83)), ("v", (50, 83))):
        for part in (slice(0, rows[0]), slice(rows[1], None)):
            assert torch.equal(before[name][part], after[name][part]), name
    assert after["output"][69, 1].isnan().all()


def test_odd_strides_keep_the_rule():
    """Rows that the copy engine cannot read take other kernels, whose sums round in another order."""
    packed = packed_inputs(LENGTHS["training"], device="cuda", dtype=torch.bfloat16, dim=64, requires_grad=False)

    def shifted(x: torch.Tensor) -> torch.Tensor:
        if x.dim() < 3:
            return x
        wide = torch.zeros(*x.shape[:2], x.shape[2] + 3, dtype=x.dtype, device=x.device)
        wide[..., 1 : 1 + x.shape[2]] = x
        return wide[..., 1 : 1 + x.shape[2]]

    packed.tensors = {name: shifted(x).requires_grad_() for name, x in packed.tensors.items()}
    assert_documents_keep_the_rule(packed, 2.0)


def test_the_host_reads_no_offset():
    packed = packed_inputs(LENGTHS["training"], device="cuda", dim=64)
    results(packed)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        packed.attend(ta, **packed.longest()).sum().backward()
        packed.attend(ta).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("views", [1, 2])
def test_one_graph_serves_other_offsets(views, dtype):
    packed = packed_inputs([(100, 100), (30, 30), (70, 70)], views=views, device="cuda", dtype=dtype, dim=64)
    bounds = {"max_seqlen_q": 128, "max_seqlen_k": 128}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    cotangent = torch.ones_like(packed.tensors["q1"])

    def run() -> list[torch.Tensor]:
        output = packed.attend(ta, **bounds)
        return [output.detach(), *torch.autograd.grad(output, packed.leaves(), cotangent)]

    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    offsets = torch.tensor([0, 17, 72, 200], dtype=torch.int32, device="cuda")
    packed.cu_seqlens_q.copy_(offsets)
    packed.cu_seqlens_k.copy_(offsets)
    graph.replay()
    for expected, replayed in zip(run(), captured, strict=True):
        assert torch.equal(expected, replayed)


@pytest.mark.parametrize("bounded", [False, True])
def test_opcheck(bounded):
    packed = packed_inputs(LENGTHS["fewer queries than keys"], device="cuda", key_heads=2)
    bounds = packed.longest() if bounded else {}
    t, offsets = packed.tensors, (packed.cu_seqlens_q, packed.cu_seqlens_k)
    one_view = (t["q1"], t["k1"], t["v"], *offsets, t["beta"])
    torch.library.opcheck(OPERATORS.threshold_rela_varlen.default, one_view, bounds)
    two_views = (t["q1"], t["k1"], t["q2"], t["k2"], t["v"], *offsets, t["lam"], t["beta"])
    torch.library.opcheck(OPERATORS.differential_threshold_rela_varlen.default, two_views, bounds)


def test_compile_fullgraph():
    packed = packed_inputs(LENGTHS["training"], device="cuda", dim=64)
    compiled = torch.compile(lambda x: x.attend(ta, **x.longest()) * 2.0, fullgraph=True)
    ours, plain = compiled(packed), packed.attend(ta) * 2.0
    torch.testing.assert_close(ours, plain)
    expected = gradients(plain, packed)
    for name, gradient in gradients(ours, packed).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_a_thousand_short_documents():
    lengths = [(1 + d * 37 % 90, 1 + d * 37 % 90) for d in range(1000)]
    packed = packed_inputs(lengths, device="cuda", query_heads=2, key_heads=2, dim=64)
    output = packed.attend(ta, **packed.longest())
    rows = list(itertools.accumulate((q for q, _ in lengths), initial=0))
    t = packed.tensors
    for d in (0, 1, 499, 998, 999):
        own = [t[n][rows[d] : rows[d + 1]].transpose(0, 1)[None] for n in ("q1", "k1", "q2", "k2", "v")]
        alone = ta.differential_threshold_rela(*own, beta=t["beta"], lam=t["lam"])[0].transpose(0, 1)
        torch.testing.assert_close(output[rows[d] : rows[d + 1]], alone, rtol=1e-4, atol=1e-5)


def test_offsets_on_the_cpu_are_refused():
    packed = packed_inputs([(4, 4)], device="cuda")
    packed.cu_seqlens_q = packed.cu_seqlens_q.cpu()
    with pytest.raises(ValueError, match="cu_seqlens_q: expected the device of q, cuda:0, got cpu"):
        packed.attend(ta)


def test_a_launch_beyond_the_largest_grid_is_refused_before_it():
    x = torch.zeros(2**21, 32, 1, device="cuda", dtype=torch.bfloat16)
    offsets = torch.arange(0, 2**21 + 1, 1024, dtype=torch.int32, device="cuda")
    with pytest.raises(ValueError, match=r"longest_key / 32 is .*, expected less than 2\^31"):
        ta.threshold_rela_varlen(x, x, x, offsets, offsets)
    assert ta.threshold_rela_varlen(x, x, x, offsets, offsets, 1024, 1024).shape == x.shape
