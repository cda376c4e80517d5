"""The operators on a CUDA device: values, gradients, and what PyTorch asks of a device kernel."""

from __future__ import annotations

import os

import pytest
import torch
from attention_inputs import one_view, random_inputs, two_views

import threshold_attention as ta
from threshold_attention import reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
OPERATORS = torch.ops.threshold_attention
TENSORS = ("q1", "k1", "q2", "k2", "v", "beta", "lam")


def cuda_inputs(views: int, **options) -> dict[str, torch.Tensor]:
    requires_grad = options.pop("requires_grad", False)
    inputs = {name: x.cuda() for name, x in random_inputs(**options).items()}
    if views == 1:
        inputs = {name: x for name, x in inputs.items() if name not in ("q2", "k2", "lam")}
    return {name: x.requires_grad_(requires_grad) for name, x in inputs.items()}


def attend(module, inputs: dict[str, torch.Tensor], **options) -> torch.Tensor:
    if "q2" in inputs:
        args, kwargs = two_views(inputs)
        return module.differential_threshold_rela(*args, **kwargs, **options)
    args, kwargs = one_view(inputs)
    return module.threshold_rela(*args, **kwargs, **options)


def naive(inputs: dict[str, torch.Tensor], power: float, rows: tuple | None = None) -> torch.Tensor:
    """The formula with every intermediate in the input dtype; the thresholds alone keep fp32 or more."""
    q1 = inputs["q1"]
    length, keys, dim = q1.shape[2], inputs["k1"].shape[2], q1.shape[3]
    group = q1.shape[1] // inputs["k1"].shape[1]
    n = torch.arange(keys - length + 1, keys + 1, device=q1.device, dtype=torch.float64)
    scale = (2.0 / dim * n.log()).sqrt()
    beta, lam = (inputs[name].unsqueeze(-1) if name in inputs else None for name in ("beta", "lam"))
    if rows is not None:  # one leaf a row, so that every row's share of the gradients can be told
        beta, lam = rows
    tau = (beta.double() * scale).unsqueeze(-1)
    if q1.dtype != torch.float64:
        tau = tau.float()

    def weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        q = q / q.norm(dim=-1, keepdim=True)
        k = (k / k.norm(dim=-1, keepdim=True)).repeat_interleave(group, 1)
        r = ((q @ k.transpose(-1, -2)) - tau).clamp_min(0).to(q.dtype)
        return (r**power).tril(keys - length)

    a = weights(q1, inputs["k1"])
    if "q2" in inputs:
        a = a - lam.unsqueeze(-1).to(a.dtype) * weights(inputs["q2"], inputs["k2"])
    return a @ inputs["v"].repeat_interleave(group, 1)


def results(output: torch.Tensor, inputs: dict[str, torch.Tensor], cotangent: torch.Tensor) -> dict[str, torch.Tensor]:
    names = [name for name in TENSORS if name in inputs]
    gradients = torch.autograd.grad(output, [inputs[name] for name in names], cotangent.to(output.dtype))
    return {"output": output.detach()} | dict(zip(names, gradients, strict=True))


def parameter_errors(inputs, wide, power: float, cotangent: torch.Tensor) -> dict[str, torch.Tensor]:
    """What rounding does to dbeta and dlam, summed over rows without regard to sign. A head has one number only, whose
    rounding errors may cancel by luck; this is the naive twin's error without that luck."""
    shares = []
    for case in (inputs, wide):
        length = case["q1"].shape[2]
        rows = [
            case[name].detach()[:, None].repeat(1, length).requires_grad_() for name in ("beta", "lam") if name in case
        ]
        output = naive(case, power, (*rows, None)[:2])
        shares.append(torch.autograd.grad(output, rows, cotangent.to(output.dtype)))
    names = ("beta", "lam")[: len(shares[0])]
    return {n: (x.double() - y).abs().sum(-1).max() for n, x, y in zip(names, *shares, strict=True)}


def assert_rule(ours, naive_result, exact, dtype, parameter_error) -> None:
    """max|ours - exact| <= 2 max|naive - exact| + floor, floor = 2 max|((exact + 0.3) - 0.3) - exact| in the dtype."""
    for name, expected in exact.items():
        rounded = expected.to(ours[name].dtype)
        floor = 2.0 * (((rounded + 0.3) - 0.3).double() - rounded.double()).abs().max()
        naive_error = parameter_error.get(name, (naive_result[name].double() - expected).abs().max())
        allowed = 2.0 * naive_error + floor
        error = (ours[name].double() - expected).abs().max()
        assert error <= allowed, f"{name} ({dtype}): off by {error:.3e}, allowed {allowed:.3e}"


def cotangent_of(output: torch.Tensor) -> torch.Tensor:
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype).cuda()


def assert_gradients_keep_the_rule(inputs: dict[str, torch.Tensor], power: float) -> None:
    wide = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    output = attend(ta, inputs, power=power)
    cotangent = cotangent_of(output)
    ours = results(output, inputs, cotangent)
    exact = results(attend(reference, wide, power=power), wide, cotangent.double())
    twin = results(naive(inputs, power), inputs, cotangent)
    assert_rule(ours, twin, exact, output.dtype, parameter_errors(inputs, wide, power, cotangent))


SHAPES = [
    dict(batch=2, query_heads=3, key_heads=3, query_length=512, key_length=512, dim=64),
    dict(batch=1, query_heads=4, key_heads=2, query_length=300, key_length=1025, dim=64),
    dict(batch=1, query_heads=2, key_heads=1, query_length=1023, key_length=1023, dim=128),
    dict(batch=1, query_heads=2, key_heads=2, query_length=257, key_length=400, dim=80, value_dim=160),
    dict(batch=1, query_heads=2, key_heads=2, query_length=200, key_length=200, dim=256),
    dict(batch=1, query_heads=2, key_heads=2, query_length=640, key_length=640, dim=64, value_dim=128),
]


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("beta", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_values_and_gradients_keep_the_rule(shape, views, dtype, beta, power):
    inputs = cuda_inputs(views, **SHAPES[shape], beta=beta, dtype=dtype, requires_grad=True, seed=shape)
    assert_gradients_keep_the_rule(inputs, power)


@pytest.mark.parametrize("views", [1, 2])
def test_more_heads_than_a_grid_dimension_holds(views):
    inputs = cuda_inputs(views, batch=70_000, query_heads=1, key_heads=1, query_length=3, key_length=3, dim=16)
    wide = {name: x.double() for name, x in inputs.items()}
    torch.testing.assert_close(attend(ta, inputs), attend(reference, wide).float(), rtol=1e-4, atol=1e-5)


def test_offsets_beyond_two_to_the_31():
    length, dim = 2**25 // 64 + 1, 64
    q = torch.empty(1, 64, length, dim, device="cuda", dtype=torch.bfloat16)
    assert q.numel() > 2**31
    head = q[:, -1:, -200:]
    head.normal_()
    out = ta.threshold_rela(head, head, head, beta=0.3)
    torch.testing.assert_close(out, ta.threshold_rela(head.clone(), head.clone(), head.clone(), beta=0.3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("views", [1, 2])
def test_backward_is_bitwise_repeatable(views, dtype):
    inputs = cuda_inputs(views, query_length=700, key_length=700, dim=64, dtype=dtype, requires_grad=True)
    cotangent = torch.randn_like(inputs["q1"])
    first = results(attend(ta, inputs), inputs, cotangent)
    for _ in range(int(os.environ.get("TDA_REPETITIONS", "100"))):
        again = results(attend(ta, inputs), inputs, cotangent)
        for name, expected in first.items():
            assert torch.equal(expected, again[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("views", [1, 2])
def test_graph_replay_gives_what_a_plain_call_gives(views, dtype):
    inputs = cuda_inputs(views, query_length=333, key_length=333, dim=64, dtype=dtype, requires_grad=True)
    cotangent = torch.randn_like(inputs["q1"])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results(attend(ta, inputs), inputs, cotangent)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(attend(ta, inputs), inputs, cotangent)
    with torch.no_grad():
        for x in inputs.values():
            x.add_(0.05 * torch.randn_like(x))
    graph.replay()
    plain = results(attend(ta, inputs), inputs, cotangent)
    for name, expected in plain.items():
        assert torch.equal(expected, captured[name]), name


def test_streams_do_not_disturb_each_other():
    cases = [cuda_inputs(2, query_length=500 + n, key_length=500 + n, dim=64, seed=n) for n in range(6)]
    expected = [attend(ta, case) for case in cases]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in cases]
    outputs = []
    for stream, case in zip(streams, cases, strict=True):
        with torch.cuda.stream(stream):
            outputs.append(attend(ta, case))
    torch.cuda.synchronize()
    assert all(torch.equal(x, y) for x, y in zip(outputs, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_second_device():
    inputs = cuda_inputs(2, query_length=300, key_length=300, dim=64)
    elsewhere = {name: x.to("cuda:1") for name, x in inputs.items()}
    output = attend(ta, elsewhere)
    assert output.device.index == 1
    assert torch.equal(output.cpu(), attend(ta, inputs).cpu())


@pytest.mark.parametrize("views", [1, 2])
def test_opcheck(views):
    inputs = cuda_inputs(views, query_length=70, key_length=70, requires_grad=True)
    if views == 1:
        args, kwargs = one_view(inputs)
        torch.library.opcheck(OPERATORS.threshold_rela.default, (*args, kwargs["beta"]))
    else:
        args, kwargs = two_views(inputs)
        torch.library.opcheck(OPERATORS.differential_threshold_rela.default, (*args, kwargs["lam"], kwargs["beta"]))


@pytest.mark.parametrize("views", [1, 2])
def test_compile_fullgraph(views):
    inputs = cuda_inputs(views, query_length=130, key_length=130, dim=64, requires_grad=True)
    cotangent = torch.randn_like(inputs["q1"])
    compiled = torch.compile(lambda x: attend(ta, x) * 2.0, fullgraph=True)
    ours = results(compiled(inputs), inputs, cotangent)
    plain = results(attend(ta, inputs) * 2.0, inputs, cotangent)
    for name, expected in plain.items():
        torch.testing.assert_close(ours[name], expected, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_the_autocast_dtype(dtype):
    inputs = cuda_inputs(2, query_length=100, key_length=100, dim=64)
    with torch.autocast("cuda", dtype=dtype):
        output = attend(ta, inputs)
    assert output.dtype == dtype
    narrow = {name: x if name in ("beta", "lam") else x.to(dtype) for name, x in inputs.items()}
    assert torch.equal(output, attend(ta, narrow))


def test_errors_name_argument_value_and_expectation():
    q = torch.randn(1, 2, 8, 300, device="cuda")
    with pytest.raises((ValueError, RuntimeError), match="head dimension of 1 to 256"):
        ta.threshold_rela(q, q, q)
    q = torch.randn(1, 2, 8, 16, device="cuda", dtype=torch.float64)
    with pytest.raises((ValueError, RuntimeError), match="float32, bfloat16, float16"):
        ta.threshold_rela(q, q, q)
    q = torch.randn(1, 2, 8, 16, device="cuda")
    with pytest.raises((ValueError, RuntimeError), match="device of q"):
        ta.threshold_rela(q, q.cpu(), q)


def test_values_of_parameters_are_never_read_by_the_host():
    inputs = cuda_inputs(1, query_length=40, key_length=40)
    inputs["beta"].fill_(float("nan"))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = attend(ta, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert output.isnan().all()


@pytest.mark.parametrize("views", [1, 2])
def test_odd_strides_keep_the_rule(views):
    """Rows that the copy engine cannot read take other kernels, whose sums round in another order."""
    inputs = cuda_inputs(views, query_length=150, key_length=150, dim=64, dtype=torch.bfloat16)

    def shifted(x: torch.Tensor) -> torch.Tensor:
        if x.dim() < 4:
            return x
        wide = torch.zeros(*x.shape[:3], x.shape[3] + 3, dtype=x.dtype, device=x.device)
        wide[..., 1 : 1 + x.shape[3]] = x
        return wide[..., 1 : 1 + x.shape[3]]

    ours = {"output": attend(ta, {name: shifted(x) for name, x in inputs.items()})}
    exact = {"output": attend(reference, {name: x.double() for name, x in inputs.items()})}
    assert_rule(ours, {"output": naive(inputs, 2.0)}, exact, torch.bfloat16, {})
