"""`tda export --to huggingface`: transformers loads the folder offline and computes and writes what we do."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from program import PROGRAM, assert_refused
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers", reason="pip install -r requirements.txt")

PROBE = PROGRAM.with_name("model_probe")
PROMPT = "The king of number"

# Of every mechanism that the modelling code has; those that the program under test lacks are left out below.
ALL_CASES: dict[str, tuple[str, ...]] = {
    "softmax": (),
    "softmax_long": ("--model.rope_scaling", "4"),
    "gated_softmax": (),
    "gated_softmax_element": ("--model.gate", "element"),
    "ssmax": ("--model.ssmax_bias", "true"),
    "entmax": ("--model.entmax_alpha", "1.5"),
    "entmax_sparsemax": ("--model.entmax_alpha", "2"),
    "lssar": ("--model.lssar_power", "3"),
    "rela": (),
    "rela_gated_rms": ("--model.rela_norm", "gated_rms"),
    "rela_layer": ("--model.rela_norm", "layer"),
    "rela_head_rms": ("--model.rela_norm", "head_rms"),
    "diff_softmax": (),
    "dex": ("--model.dex_annealing_steps", "10"),
    "diff_rela": (),
    "diff_rela_halved": ("--model.view_heads", "halved"),
    "tra": (),
    "tra_power": ("--model.power", "2.5", "--model.kappa", "3"),
    "tda": (),
    "tda_halved": ("--model.view_heads", "halved"),
    "asentmax": (),
    "softpick": (),
}


def mechanism_of(case: str) -> str | None:
    fitting = [name for name in KNOWN_MECHANISMS if case == name or case.startswith(name + "_")]
    return max(fitting, key=len, default=None)


# From the program's own list of keys.
KEYS = subprocess.run([PROGRAM, "train", "--list-keys"], capture_output=True, text=True, check=True).stdout
KNOWN_MECHANISMS = re.findall(r"`mechanism`[^|]*\|[^|]*\| one of ([^|]*) \|", KEYS)[0].split(", ")
CASES = {
    case: options
    for case, options in ALL_CASES.items()
    if mechanism_of(case) and all(f"| `{name.removeprefix('--model.')}` |" in KEYS for name in options[::2])
}


@pytest.fixture(scope="module", autouse=True)
def transformers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The library without a network, with a cache of its own for the code that it loads."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path_factory.mktemp("hf"))}
    import transformers  # noqa: PLC0415

    return transformers


@dataclass
class Exported:
    checkpoint: Path
    folder: Path
    model: Any
    tokenizer: Any


@pytest.fixture(scope="module")
def export(small_runs, run_tda, tmp_path_factory, transformers) -> Callable[[str], Exported]:
    """Trains a small model of the case for six steps and exports it; once for each case."""
    made: dict[str, Exported] = {}

    def make(case: str) -> Exported:
        if case in made:
            return made[case]
        folder = tmp_path_factory.mktemp(case)
        recipe = small_runs.tda.parent / "tda.toml"
        options = ("--model.mechanism", mechanism_of(case), *CASES[case])
        run_tda("train", recipe, "--output", folder / "run", *options)
        run_tda("export", folder / "run", "--to", "huggingface", folder / "exported")
        target = folder / "exported"
        model = transformers.AutoModelForCausalLM.from_pretrained(target, trust_remote_code=True).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(target, trust_remote_code=True)
        made[case] = Exported(folder / "run" / "checkpoints" / "step-000006", target, model, tokenizer)
        return made[case]

    return make


@torch.no_grad()
def spread_by_rounding(model: Any, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The largest change of a logit when every parameter moves by at most a spacing of fp32, in eight draws.

    A row whose few survivors lie near the threshold magnifies rounding, whoever computes it.
    """
    generator = torch.Generator().manual_seed(1)
    spread = torch.zeros(())
    for _ in range(8):
        moved = copy.deepcopy(model)
        for parameter in moved.parameters():
            parameter.mul_(1 + (2 * torch.rand(parameter.shape, generator=generator) - 1) * 2**-23)
        spread = spread.maximum((moved(ids).logits - logits).abs().max())
    return spread


@pytest.mark.parametrize("case", CASES)
def test_logits_are_ours(export, tmp_path, case):
    exported = export(case)
    ids = torch.randint(0, 257, (2, 48), generator=torch.Generator().manual_seed(3))
    save_file({"ids": ids, "targets": ids.clone()}, tmp_path / "inputs.safetensors")
    subprocess.run(
        [PROBE, "run", exported.checkpoint, tmp_path / "inputs.safetensors", tmp_path / "ours.safetensors", "fp32"],
        check=True,
    )
    ours = load_file(tmp_path / "ours.safetensors")["logits"]
    with torch.no_grad():
        theirs = exported.model(ids).logits
    assert theirs.dtype == torch.float32
    assert (ours - theirs).abs().max() <= 2e-5 * ours.abs().max() + spread_by_rounding(exported.model, ids, theirs)


@pytest.mark.parametrize("case", CASES)
def test_greedy_text_is_ours(export, run_tda, case):
    exported = export(case)
    ours = run_tda("generate", exported.checkpoint, "--prompt", PROMPT, "--temperature", "0", "--max-tokens", "24")
    prompt = exported.tokenizer(PROMPT, return_tensors="pt")
    tokens = exported.model.generate(**prompt, max_new_tokens=24)[0, prompt.input_ids.shape[1] :]
    theirs = exported.tokenizer.decode(tokens, skip_special_tokens=True)
    assert theirs == ours.stdout


@pytest.mark.parametrize("case", CASES)
def test_cache_changes_nothing(export, case):
    """Rows computed one at a time, or in two pieces, are those of the whole text."""
    model = export(case).model
    ids = torch.randint(0, 257, (2, 20), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        whole = model(ids, use_cache=False)
        assert whole.past_key_values is None
        rows, cache = [], None
        for piece in ids.split([7, 6, *[1] * 7], dim=1):
            step = model(piece, past_key_values=cache)
            cache = step.past_key_values
            rows.append(step.logits)
    assert torch.allclose(torch.cat(rows, dim=1), whole.logits, rtol=0, atol=2e-5 * whole.logits.abs().max().item())


def test_every_mechanism_is_covered(export):
    module = sys.modules[type(export("softmax").model).__module__]
    assert set(KNOWN_MECHANISMS) <= set(module.MECHANISMS)
    assert {mechanism_of(case) for case in CASES} == set(KNOWN_MECHANISMS)


def test_folder(export):
    exported = export("tda")
    assert sorted(path.name for path in exported.folder.iterdir() if path.name != "__pycache__") == [
        *("attention_tda.py", "config.json", "configuration_tda.py", "generation_config.json", "mechanisms_tda.py"),
        *("model.safetensors", "modeling_tda.py", "tokenizer.json", "tokenizer_config.json"),
    ]
    weights = exported.checkpoint / "model.safetensors"
    assert (exported.folder / "model.safetensors").read_bytes() == weights.read_bytes()
    config = json.loads((exported.folder / "config.json").read_text())
    assert config["architectures"] == ["TdaForCausalLM"]
    assert config["num_hidden_layers"] == 2
    assert config["eos_token_id"] == 256


def test_padded_ids_are_never_generated(export):
    exported = export("softmax")
    with torch.no_grad():
        saved = exported.model.head.weight.clone()
        exported.model.head.weight[300] = 0
        hidden = exported.model.head.weight[257:].mul_(100)
        assert hidden.shape[0] == 63
        tokens = exported.model.generate(torch.tensor([[256, 84]]), max_new_tokens=16)
        exported.model.head.weight.copy_(saved)
    assert tokens.max() <= 256


def test_tokens_are_ours(export, tda):
    tokenizer = export("tda").tokenizer
    text = "Überall, 日本 <\x00> \r\n\t x"
    ours = [int(word) for word in tda("tokenize", input=text.encode()).stdout.split()]
    assert tokenizer(text).input_ids == [256, *ours]
    assert tokenizer.decode([256, *ours], skip_special_tokens=True) == text
    assert tokenizer.model_max_length == 64


def test_tokens_of_gpt2_are_ours(small_runs, run_tda, tda, real_data, tmp_path, transformers):
    vocabulary = ("--vocabulary", real_data / "bpe")
    run_tda(
        *("data", "prepare", "--tokenizer", "gpt2", *vocabulary, "--input", small_runs.text),
        *("--validation-fraction", "0.3", "--output", tmp_path / "data"),
    )
    recipe = small_runs.tda.parent / "tda.toml"
    changes = ("--data.path", tmp_path / "data", "--model.vocabulary", "0", "--train.steps", "2")
    run_tda("train", recipe, "--output", tmp_path / "run", *changes)
    run_tda("export", tmp_path / "run", "--to", "huggingface", tmp_path / "exported")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported", trust_remote_code=True)
    texts = [small_runs.text.read_text(), "Überall it's   日本\n\n 12345 'll x_y\t", Path(__file__).read_text()]
    for text in texts:
        ours = tda("tokenize", "--tokenizer", "gpt2", *vocabulary, input=text.encode()).stdout
        assert tokenizer(text).input_ids == [50256, *map(int, ours.split())]
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_padding_belongs_behind_the_text(export):
    model = export("tda").model
    ids = torch.randint(0, 256, (2, 6), generator=torch.Generator().manual_seed(5))
    right = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        logits = model(ids, attention_mask=right).logits
        assert torch.equal(logits[0, :4], model(ids, attention_mask=torch.ones_like(ids)).logits[0, :4])
    with pytest.raises(ValueError, match="padding on the right"):
        model(ids, attention_mask=right.flip(1))
    with pytest.raises(ValueError, match="positions count from the first token"):
        model(ids, position_ids=torch.arange(1, 7).expand(2, 6))


def test_it_trains(export):
    exported = export("tda")
    ids = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(6))
    loss = exported.model(ids, labels=ids).loss
    logits = exported.model(ids).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert all(parameter.grad is not None for parameter in exported.model.parameters())
    exported.model.zero_grad()


def test_saved_again_it_is_the_same(export, tmp_path, transformers):
    exported = export("tda")
    exported.model.save_pretrained(tmp_path / "again")
    ids = torch.tensor([[256, 84, 104]])
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, exported.model(ids).logits)


def test_bad_input_leaves_nothing(tda, small_runs, tmp_path):
    target = tmp_path / "exported"
    assert_refused(tda("export", small_runs.tda, "--to", "gguf", target), '--to is "gguf"', "huggingface")
    assert_refused(tda("export", tmp_path / "absent", "--to", "huggingface", target), "absent")
    assert_refused(tda("export", small_runs.tda, "--to", "huggingface"), "DIR is required")
    damaged = tmp_path / "step-000006"
    shutil.copytree(small_runs.tda / "checkpoints" / "step-000006", damaged)
    (damaged / "model.safetensors").write_bytes(b"x" * 100)
    assert_refused(tda("export", damaged, "--to", "huggingface", target), "model.safetensors")
    assert sorted(tmp_path.iterdir()) == [damaged]
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    assert_refused(tda("export", small_runs.tda, "--to", "huggingface", target), "is not an empty folder", "HINT: ")
    assert [path.name for path in target.iterdir()] == ["notes.txt"]
