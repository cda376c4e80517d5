"""Wrong arguments raise errors that name the argument, its value and what was expected; on fake tensors too."""

from __future__ import annotations

import pytest
import torch
from attention_inputs import random_inputs

import threshold_attention as ta
from threshold_attention._library import LIBRARY


def call(device: str = "cpu", **changes):
    inputs = {name: x.to(device) for name, x in random_inputs().items()}
    options = {name: changes.pop(name) for name in list(changes) if name in ("kappa", "power", "beta", "lam")}
    tensors = {name: changes[name](x) if name in changes else x for name, x in inputs.items()}
    options.setdefault("beta", tensors["beta"])
    options.setdefault("lam", tensors["lam"])
    return ta.differential_threshold_rela(*(tensors[name] for name in ("q1", "k1", "q2", "k2", "v")), **options)


WRONG_SHAPES = [
    ({"q1": lambda q: q[0]}, r"q: expected 4 dimensions.*\[4, 20, 16\]"),
    ({"k1": lambda k: k[:, :, :, :8]}, r"k: expected the head dimension of q, 16, got shape \[2, 4, 20, 8\]"),
    ({"k1": lambda k: k[:, :3]}, r"k: expected a number of heads that divides the 4 heads of q.*\[2, 3, 20, 16\]"),
    ({"k1": lambda k: k[:1]}, r"k: expected the batch size of q, 2"),
    ({"k1": lambda k: k[:, :, :19]}, r"q: expected at most as many rows as k has, 19"),
    ({"v": lambda v: v[..., :8]}, r"v: expected a head dimension of 16 or 32, got shape \[2, 4, 20, 8\]"),
    ({"v": lambda v: v[:, :, :5]}, r"v: expected the batch, heads and length of k"),
    ({"q2": lambda q: q[:, :, :5]}, r"q2: expected the shape of q1"),
    ({"k2": lambda k: k[:, :2]}, r"k2: expected the shape of k1"),
    ({"v": lambda v: v.half()}, r"v: expected the dtype of q, Float, got Half"),
    ({"q2": lambda q: q.double()}, r"q2: expected the dtype of q, Float, got Double"),
    ({"kappa": 0.0}, r"kappa: expected a finite number above 0, got 0"),
    ({"kappa": float("inf")}, r"kappa: .*got inf"),
    ({"power": 0.5}, r"power: expected a finite number of at least 1, got 0.5"),
    ({"power": float("nan")}, r"power: .*got nan"),
    ({"beta": float("nan")}, r"beta: expected a finite number, got nan"),
    ({"lam": float("-inf")}, r"lam: expected a finite number, got -inf"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("changes", "message"), WRONG_SHAPES)
def test_wrong_arguments(device, changes, message):
    with pytest.raises(ValueError, match=message):
        call(device, **changes)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["beta", "lam"])
def test_wrong_parameter_tensors(device, name):
    with pytest.raises(ValueError, match=rf"{name}: expected a number, a 0-d tensor or .*\(4,\).*\[3\]"):
        call(device, **{name: torch.ones(3, device=device)})
    with pytest.raises(ValueError, match=rf"{name}: expected a floating-point dtype, got Long"):
        call(device, **{name: torch.ones(4, dtype=torch.long, device=device)})
    with pytest.raises(TypeError, match=f"{name}: expected a number or a tensor, got str"):
        call(device, **{name: "1"})


def test_queries_that_are_no_tensor():
    with pytest.raises(TypeError, match="q: expected a tensor, got list"):
        call(q1=lambda q: q.tolist())


def test_parameter_on_another_device():
    with pytest.raises(ValueError, match="beta: expected the device of q, cpu, got meta"):
        call(beta=torch.ones(4, device="meta"))


@pytest.mark.parametrize("name", ["beta", "lam"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_parameters_on_the_cpu(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected finite values, got .*(nan|inf)"):
        call(**{name: torch.tensor(value)})
    with pytest.raises(ValueError, match="for head 2"):
        call(**{name: torch.tensor([0.5, 0.5, value, 0.5])})


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool])
def test_wrong_dtype_of_all_inputs(dtype):
    x = torch.ones(1, 1, 4, 8).to(dtype)
    with pytest.raises(ValueError, match="q: expected float32, bfloat16, float16"):
        ta.threshold_rela(x, x, x)


def test_head_dimensions_beyond_256():
    x = torch.randn(1, 1, 4, 257)
    with pytest.raises(ValueError, match=r"q: expected a head dimension of 1 to 256, got shape \[1, 1, 4, 257\]"):
        ta.threshold_rela(x, x, x)


def test_errors_surface_from_compiled_code():
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k, v: ta.threshold_rela(q, k, v), fullgraph=True)
    x = torch.randn(1, 2, 4, 8)
    with pytest.raises(Exception, match="v: expected a head dimension of 8 or 16"):
        compiled(x, x, x[..., :4])


def test_a_foreign_survivor_index_is_refused():
    inputs = random_inputs()
    arguments = (inputs["q1"], inputs["k1"], None, None, inputs["v"], inputs["beta"], None)
    index = torch.empty(12345, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"index: expected the .* bytes that forward wrote.*got 12345"):
        torch.ops.threshold_attention.backward(
            torch.ones_like(inputs["q1"]), *arguments, index, 1.0, 2.0, True, [True] * 7
        )


def test_cuda_tensors_without_cuda_kernels():
    # Without a GPU no CUDA tensor can be made; then the kernel that refuses must at least be there.
    for operator in ("forward", "backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"threshold_attention::{operator}", "CUDA")
    if not torch.cuda.is_available() or b"forward_fp32_kernel" in LIBRARY.read_bytes():
        return
    x = torch.randn(1, 1, 4, 8, device="cuda")
    with pytest.raises(NotImplementedError, match="no CUDA kernels"):
        ta.threshold_rela(x, x, x)
