"""`tda generate` on bad input: one line on stderr, exit code 2, and no token before it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from program import Tda, assert_refused, sign_checkpoint
from safetensors.numpy import load_file, save_file

SHORT = ("--prompt", "The", "--max-tokens", "4")


@pytest.fixture
def step(small_runs, tmp_path: Path) -> Path:
    """A step folder to spoil."""
    return Path(shutil.copytree(small_runs.tda / "checkpoints" / "step-000006", tmp_path / "step-000006"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--temperature", "-1"], "temperature is -1, expected a number of at least 0"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--temperature", "inf"], "temperature is inf"),
        (["--temperature", "warm"], "--temperature"),
        (["--top-p", "0"], "top-p is 0, expected a number above 0 and at most 1"),
        (["--top-p", "1.5"], "top-p is 1.5"),
        (["--top-p", "-0.5"], "top-p is -0.5"),
        (["--top-p", "nan"], "top-p is nan"),
        (["--top-k", "-1"], "top-k is -1, expected a whole number of at least 0"),
        (["--top-k", "1.5"], "--top-k"),
        (["--max-tokens", "-1"], "max-tokens is -1, expected a whole number of at least 0"),
        (["--precision", "fp16"], 'precision is "fp16", expected "fp32" or "bf16"'),
        (["--temprature", "1"], "did you mean '--temperature'?"),
    ],
)
def test_option_out_of_range(tda: Tda, small_runs, arguments: list[str], expected: str) -> None:
    # Left at its default, the longest continuation passes the context: the note about that must not stand before.
    assert_refused(tda("generate", small_runs.tda, "--prompt", "The", *arguments), expected)


def test_prompt_is_required(tda: Tda, small_runs) -> None:
    assert_refused(tda("generate", small_runs.tda), "--prompt is required")


def test_no_checkpoint_there(tda: Tda, tmp_path: Path) -> None:
    missing = tmp_path / "runs" / "mine"
    assert_refused(tda("generate", missing, *SHORT), f"checkpoint {missing} does not exist", "HINT: ")
    (tmp_path / "file").write_text("text")
    assert_refused(tda("generate", tmp_path / "file", *SHORT), "is a file")
    assert_refused(tda("generate", tmp_path, *SHORT), str(tmp_path), "manifest.json is missing")
    (tmp_path / "fresh" / "checkpoints").mkdir(parents=True)
    assert_refused(tda("generate", tmp_path / "fresh", *SHORT), "holds no checkpoint yet", "HINT: ")
    assert_refused(tda("generate", tmp_path / ("a" * 300), *SHORT), "a" * 300)


FILES = ("model.safetensors", "config.json", "tokenizer.json", "optimizer.safetensors", "state.json", "recipe.toml")


@pytest.mark.parametrize("name", FILES)
def test_damage_is_named(tda: Tda, step: Path, name: str) -> None:
    file = step / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert_refused(tda("generate", step, *SHORT), f"checkpoint {step} is damaged: {name} has CRC-32")
    file.write_bytes(content[:-1])
    assert_refused(tda("generate", step, *SHORT), f"{name} has {len(content) - 1} bytes")
    file.unlink()
    assert_refused(tda("generate", step, *SHORT), f"{name} is missing")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"format": "tda-checkpoint", "version": 1}', b"\xff"])
def test_damaged_manifest_is_named(tda: Tda, step: Path, content: bytes) -> None:
    (step / "manifest.json").write_bytes(content)
    assert_refused(tda("generate", step, *SHORT), "manifest.json is not the manifest of a TDA checkpoint")


def test_changed_manifest_is_not_blamed_on_another_file(tda: Tda, step: Path) -> None:
    manifest = step / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 6', '"step": 7'))
    assert_refused(tda("generate", step, *SHORT), "manifest.json was changed")


def test_run_passes_over_a_damaged_step_and_says_so(tda: Tda, small_runs, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small_runs.tda, tmp_path / "run"))
    newest, before = run / "checkpoints" / "step-000006", run / "checkpoints" / "step-000003"
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    result = tda("generate", run, *SHORT, "--temperature", 0)
    assert result.returncode == 0, result.stderr
    assert result.stdout == tda("generate", before, *SHORT, "--temperature", 0).stdout
    warnings = result.stderr.decode().splitlines()
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: checkpoint {newest} is damaged: model.safetensors has ")
    assert_refused(tda("generate", newest, *SHORT), "model.safetensors", f"HINT: the one before it is intact: {before}")

    (before / "model.safetensors").unlink()
    refused = tda("generate", run, *SHORT)
    assert_refused(refused, "holds no intact checkpoint", "model.safetensors is missing", at_work=True)


def spoil_json(name: str, **changes: object) -> Callable[[Path], None]:
    def spoil(step: Path) -> None:
        content = json.loads((step / name).read_text())
        (step / name).write_text(json.dumps(content | changes))

    return spoil


def spoil_weights(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def spoil(step: Path) -> None:
        weights = dict(load_file(step / "model.safetensors"))
        change(weights)
        save_file(weights, step / "model.safetensors")

    return spoil


# Files whose checksums are right and whose content is not: written by another program, or by a careless editor.
WRONG: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no JSON": (lambda s: (s / "config.json").write_text("{"), ["config.json", "not valid JSON"]),
    "key missing": (lambda s: (s / "config.json").write_text("{}"), ["config.json", "num_hidden_layers"]),
    "wrong type": (spoil_json("config.json", hidden_size="wide"), ["config.json", 'hidden_size" is "wide"']),
    "impossible shape": (spoil_json("config.json", num_attention_heads=3), ["config.json", "heads = 3"]),
    "unknown mechanism": (spoil_json("config.json", mechanism="tdaa"), ['mechanism is "tdaa"', 'mean "tda"?']),
    "another width": (spoil_json("config.json", hidden_size=64), ["model.safetensors", "embedding.weight", "expected"]),
    "another depth": (spoil_json("config.json", num_hidden_layers=3), ["model.safetensors", "layers.2.", "missing"]),
    "fewer layers": (spoil_json("config.json", num_hidden_layers=1), ["model.safetensors", "layers.1.", "unknown"]),
    "tensor missing": (spoil_weights(lambda w: w.pop("head.weight")), ["model.safetensors", "head.weight", "missing"]),
    "integers": (
        spoil_weights(lambda w: w.update({"final_norm.weight": np.ones(32, np.int32)})),
        ["model.safetensors", "final_norm.weight", "floating"],
    ),
    "no safetensors": (
        lambda s: (s / "model.safetensors").write_bytes(b"\xff" * 99),
        ["model.safetensors", "not safetensors"],
    ),
    "empty weights": (lambda s: (s / "model.safetensors").write_bytes(b""), ["model.safetensors", "too few"]),
    "unknown tokenizer": (spoil_json("tokenizer.json", type="word"), ["unknown tokenizer 'word'"]),
    "no tokenizer": (lambda s: (s / "tokenizer.json").write_text("[]"), ["tokenizer.json", "describes no tokenizer"]),
    "no ranks": (spoil_json("tokenizer.json", type="gpt2"), ["gpt2.tiktoken"]),
}


@pytest.mark.parametrize("what", WRONG)
def test_content_that_does_not_fit_is_refused(tda: Tda, step: Path, what: str) -> None:
    spoil, expected = WRONG[what]
    spoil(step)
    sign_checkpoint(step)
    assert_refused(tda("generate", step, *SHORT), *expected)


def test_signing_alone_changes_nothing(tda: Tda, step: Path) -> None:
    before = tda("generate", step, *SHORT)
    sign_checkpoint(step)
    after = tda("generate", step, *SHORT)
    assert (after.returncode, after.stdout) == (0, before.stdout)


def test_tokenizer_with_more_ids_than_the_model(tda: Tda, step: Path, real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("text")
    data = tmp_path / "data"
    ranks = ("--tokenizer", "gpt2", "--vocabulary", real_data / "bpe")
    assert tda("data", "prepare", *ranks, "--input", tmp_path / "text.txt", "--output", data).returncode == 0
    shutil.copy(data / "gpt2.tiktoken", step)
    spoil_json("tokenizer.json", type="gpt2")(step)
    sign_checkpoint(step)
    assert_refused(tda("generate", step, *SHORT), "the tokenizer has 50257 ids, the model 320")


def test_weights_that_are_not_finite(tda: Tda, step: Path) -> None:
    """A model that diverged is no wrong usage: exit code 1."""
    spoil_weights(lambda w: w["head.weight"].fill(np.nan))(step)
    sign_checkpoint(step)
    assert_refused(tda("generate", step, *SHORT), "the logit of token 0 is not finite", code=1)


def test_every_prompt_is_text(tda: Tda, small_runs) -> None:
    """Bytes that are no UTF-8, and none at all, are prompts like others."""
    for prompt in (b"\xff\xfe\x80", b"", b"\r\n", b"<|endoftext|>"):
        result = tda("generate", small_runs.tda, "--prompt", prompt.decode(errors="surrogateescape"), *SHORT[2:])
        assert result.returncode == 0, result.stderr
        assert result.stderr == b""


def test_prompt_beyond_the_context_is_noted(tda: Tda, small_runs) -> None:
    result = tda("generate", small_runs.tda, "--prompt", "The " * 16, "--max-tokens", "0")
    assert result.returncode == 0
    assert result.stdout == b""
    assert b"may pass the 64 tokens of context" in result.stderr
