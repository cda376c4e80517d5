"""The C++ model against its twin in plain PyTorch: logits, loss and the gradient of every parameter."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from gpt_twin import GptTwin, load_twin
from safetensors.torch import load_file, save_file
from torch import Tensor

PROBE = Path(__file__).resolve().parents[2] / "build" / "model_probe"

CONFIG: dict[str, Any] = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "vocab_size": 320,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "mechanism": "softmax",
    "view_heads": "full",
    # At 1 nearly every row of an untrained model is empty.
    "beta": 0.6,
    "lambda": 0.4,
    "learn_beta": True,
    "learn_lambda": True,
    "kappa": 1.0,
    "power": 2.0,
    "head_norm_eps": 1e-6,
}

CASES: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax_scaled_rope": {"rope_scaling": {"rope_type": "ntk-aware", "factor": 4.0}},
    "gated_softmax": {"mechanism": "gated_softmax"},
    "gated_softmax_element": {"mechanism": "gated_softmax", "gate": "element"},
    "ssmax": {"mechanism": "ssmax", "ssmax_bias": True},
    "entmax": {"mechanism": "entmax"},
    "entmax_alpha": {"mechanism": "entmax", "entmax_alpha": 1.25},
    "lssar": {"mechanism": "lssar"},
    "lssar_cubic": {"mechanism": "lssar", "lssar_power": 3.0, "lssar_offset": 0.5},
    "rela": {"mechanism": "rela"},
    "rela_layer": {"mechanism": "rela", "rela_norm": "layer"},
    "rela_gated": {"mechanism": "rela", "rela_norm": "gated_rms"},
    "rela_head": {"mechanism": "rela", "rela_norm": "head_rms"},
    "diff_softmax": {"mechanism": "diff_softmax"},
    "dex": {"mechanism": "dex", "dex_annealing_steps": 50},
    "diff_rela": {"mechanism": "diff_rela"},
    "diff_rela_halved": {"mechanism": "diff_rela", "view_heads": "halved"},
    "tra": {"mechanism": "tra"},
    "tra_power": {"mechanism": "tra", "power": 2.5, "kappa": 3.0},
    "tda": {"mechanism": "tda"},
    "tda_halved": {"mechanism": "tda", "view_heads": "halved"},
    "tda_wide_heads": {"mechanism": "tda", "num_attention_heads": 2},
    "tda_odd_width": {"mechanism": "tda", "hidden_size": 72, "num_attention_heads": 4},
    "asentmax": {"mechanism": "asentmax"},
    "softpick": {"mechanism": "softpick"},
}


# Tensors this small gain nothing from threads, and on a busy machine threads wait for each other most of the time.
torch.set_num_threads(1)
PROBE_ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}

# fp32 evaluations of the twin from which its rounding error is read. One is not enough: a few rows just above their
# threshold, where the norm magnifies the rounding of a score, make most of the largest error.
DRAWS = 8


@dataclass
class Evaluation:
    logits: Tensor
    gradients: dict[str, Tensor]

    def distances(self, exact: Evaluation) -> dict[str, float]:
        """Largest distance from `exact`, of the logits and of each gradient."""
        assert self.gradients.keys() == exact.gradients.keys()
        pairs = {name: (self.gradients[name], exact.gradients[name]) for name in exact.gradients}
        pairs["logits"] = (self.logits, exact.logits)
        return {name: (found.double() - wanted.double()).abs().max().item() for name, (found, wanted) in pairs.items()}


@dataclass
class Comparison:
    """What the model and its twin in fp32 and fp64 say about the same batch."""

    ours: Evaluation
    twin: Evaluation
    exact: Evaluation
    twin_errors: dict[str, float]  # the largest of DRAWS

    def assert_as_exact_as_the_twin(self) -> None:
        """No further from fp64 than twice the fp32 twin, but for the rounding of one addition."""
        exact = dict(self.exact.gradients, logits=self.exact.logits)
        for name, error in self.ours.distances(self.exact).items():
            assert exact[name].abs().max() > 0, f"{name} is zero, so this test says nothing"
            single = exact[name].float()
            floor = 2 * ((single + 0.3 - 0.3) - single).abs().max().item()
            allowed = 2 * self.twin_errors[name] + floor
            assert error <= allowed, f"{name}: {error:.3g} > {allowed:.3g}"


def run_probe(*arguments: object) -> None:
    command = [str(PROBE), *map(str, arguments)]
    result = subprocess.run(command, env=PROBE_ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def evaluate(twin: GptTwin, ids: Tensor, targets: Tensor) -> Evaluation:
    with torch.no_grad():
        logits = twin(ids)
    twin.loss(ids, targets).backward()
    gradients = {name: parameter.grad for name, parameter in twin.named_parameters() if parameter.grad is not None}
    return Evaluation(logits, gradients)


def permute_width(name: str, tensor: Tensor, order: Tensor) -> Tensor:
    """The same model with the coordinates of its residual stream in another order: equal but for rounding."""
    if name.endswith(("output.weight", "down.weight")) or (name.endswith("norm.weight") and "head_norm" not in name):
        return tensor[order]
    if tensor.dim() == 2 and "head_norm" not in name and "differential" not in name:
        return tensor[:, order]
    return tensor


def permuted_evaluation(folder: Path, ids: Tensor, targets: Tensor, seed: int) -> Evaluation:
    twin = load_twin(folder)
    width = twin.embedding.weight.shape[1]
    order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(permute_width(name, parameter, order).clone())
    result = evaluate(twin, ids, targets)
    back = torch.argsort(order)
    result.gradients = {name: permute_width(name, value, back) for name, value in result.gradients.items()}
    return result


def make_model(folder: Path, changes: dict[str, Any], scale: float) -> None:
    config_path = folder / "start.json"
    config_path.write_text(json.dumps(CONFIG | changes))
    run_probe("create", config_path, 7, folder)
    # Gains, beta and lambda start equal in every head, which would hide a mix-up of heads.
    path = folder / "model.safetensors"
    tensors = load_file(path)
    generator = torch.Generator().manual_seed(11)
    for name, tensor in tensors.items():
        if name.endswith("annealing_step"):
            tensor.fill_(20)
        elif tensor.dim() == 2 and "norm" not in name and "differential" not in name:
            tensor.mul_(scale)
        elif name.endswith("weight"):
            tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator))
        else:
            tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator) - 0.1)
    save_file(tensors, path)


def compare(folder: Path, case: str, scale: float) -> Comparison:
    make_model(folder, CASES[case], scale)
    tokens = torch.randint(0, 257, (3, 65), generator=torch.Generator().manual_seed(5))
    ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    save_file({"ids": ids, "targets": targets}, folder / "inputs.safetensors")
    run_probe("run", folder, folder / "inputs.safetensors", folder / "outputs.safetensors", "fp32")
    found = load_file(folder / "outputs.safetensors")
    gradients = {name.removeprefix("grad."): value for name, value in found.items() if name.startswith("grad.")}
    exact = evaluate(load_twin(folder).double(), ids, targets)
    errors = [permuted_evaluation(folder, ids, targets, seed).distances(exact) for seed in range(DRAWS)]
    return Comparison(
        ours=Evaluation(found["logits"], gradients),
        twin=evaluate(load_twin(folder), ids, targets),
        exact=exact,
        twin_errors={name: max(error[name] for error in errors) for name in errors[0]},
    )


@pytest.fixture(scope="module", params=CASES, ids=str)
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A model at its start values."""
    return compare(tmp_path_factory.mktemp("start"), request.param, 1.0)


@pytest.fixture(scope="module", params=CASES, ids=str)
def sharp(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A model whose attention tells keys apart."""
    return compare(tmp_path_factory.mktemp("sharp"), request.param, 5.0)


def test_logits_equal_those_of_the_twin(start: Comparison) -> None:
    assert (start.ours.logits - start.twin.logits).abs().max() <= 2e-5 * start.twin.logits.abs().max()


def test_start_values(start: Comparison) -> None:
    start.assert_as_exact_as_the_twin()


def test_sharp_attention(sharp: Comparison) -> None:
    sharp.assert_as_exact_as_the_twin()
