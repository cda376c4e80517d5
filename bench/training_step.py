"""A training step of the C++ model beside the same model in PyTorch eager mode, on the CPU.

PyTorch's side is what a user would write: nn.Linear, F.scaled_dot_product_attention for softmax, dense matrices for
TDA, bf16 by autocast, torch.optim.AdamW. The fastest of the steps counts, since other load only ever adds time.

    .venv/bin/python bench/training_step.py --output bench/results/DATE-MACHINE-training-step.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "lm"))

import gpt_twin  # noqa: E402


def config(mechanism: str, arguments: argparse.Namespace) -> dict[str, object]:
    return {
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.heads,
        "hidden_size": arguments.width,
        "vocab_size": 320,
        "max_position_embeddings": arguments.length,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "mechanism": mechanism,
        "view_heads": "full",
        "beta": arguments.beta,
        "lambda": 0.5,
        "learn_beta": True,
        "learn_lambda": True,
        "kappa": 1.0,
        "power": 2.0,
        "head_norm_eps": 1e-6,
    }


def use_fused_softmax() -> None:
    """Lets the twin's softmax run on SDPA, as any PyTorch user would."""
    dense = gpt_twin.Attention.forward

    def forward(self: gpt_twin.Attention, x: torch.Tensor) -> torch.Tensor:
        if self.config.mechanism != "softmax":
            return dense(self, x)
        base = self.config.rope_theta
        q, k = (gpt_twin.rotate(self.split(name, x), base) for name in ("query", "key"))
        rows = F.scaled_dot_product_attention(q, k, self.split("value", x), is_causal=True)
        return self.output(rows.transpose(1, 2).reshape(x.shape))

    gpt_twin.Attention.forward = forward


def time_eager(path: Path, arguments: argparse.Namespace, precision: str) -> float:
    torch.manual_seed(0)
    model = gpt_twin.GptTwin(gpt_twin.TwinConfig.read(path))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "norm" not in name:
            torch.nn.init.normal_(parameter, 0, 0.02)
        if name.endswith("beta"):
            torch.nn.init.constant_(parameter, arguments.beta)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(0, 256, (arguments.batch, arguments.length + 1))
    times = []
    for _ in range(arguments.steps + 2):
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        times.append(1e3 * (time.perf_counter() - start))
    return min(times[2:])


def time_ours(path: Path, arguments: argparse.Namespace, precision: str) -> dict[str, float]:
    command = [arguments.program, path, arguments.batch, arguments.length, precision, arguments.steps]
    environment = {"OMP_NUM_THREADS": str(arguments.threads)}
    words = [str(part) for part in command]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True, env=environment).stdout)


def write_result(arguments: argparse.Namespace, rows: list[dict[str, object]]) -> None:
    names = ("layers", "heads", "width", "length", "batch", "beta", "steps", "threads")
    result = {
        "what": "milliseconds of forward, backward and AdamW of one batch, the fastest of the steps",
        "command": shlex.join(["bench/training_step.py", *sys.argv[1:]]),
        "commit": arguments.commit,
        "machine": arguments.machine,
        "pytorch": torch.__version__,
        **{name: getattr(arguments, name) for name in names},
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mechanisms", default="softmax,tda")
    parser.add_argument("--precisions", default="bf16,fp32")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--beta", type=float, default=0.6)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--program", type=Path, default=ROOT / "build" / "training_step")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    parser.add_argument("--commit", default="", help="noted in the output")
    parser.add_argument("--machine", default="", help="noted in the output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    use_fused_softmax()
    print("mechanism  precision    ours ms   eager ms   eager/ours   ours tokens/s")
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        for mechanism in arguments.mechanisms.split(","):
            path.write_text(json.dumps(config(mechanism, arguments)))
            for precision in arguments.precisions.split(","):
                ours = time_ours(path, arguments, precision)
                eager = time_eager(path, arguments, precision)
                ratio = eager / ours["fastest_ms"]
                print(
                    f"{mechanism:<10} {precision:<9} {ours['fastest_ms']:>10.1f} {eager:>10.1f}"
                    f" {ratio:>12.2f} {ours['tokens_per_second']:>15.0f}",
                    flush=True,
                )
                row = {"mechanism": mechanism, "precision": precision, "ours_ms": ours["fastest_ms"]}
                rows.append({**row, "eager_ms": round(eager, 2), "eager_over_ours": round(ratio, 3)})
    if arguments.output:
        write_result(arguments, rows)


if __name__ == "__main__":
    main()
