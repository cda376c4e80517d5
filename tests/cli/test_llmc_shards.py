"""Shards as llm.c writes them are a dataset as they are; built here byte for byte from the format's description."""

from __future__ import annotations

import base64
import itertools
import json
import random
import struct
from pathlib import Path

import pytest
from program import REPOSITORY, Tda, assert_refused

END_OF_TEXT = 50256
RECIPE = """
[model]
mechanism = "tda"
layers = 1
heads = 2
width = 16
context = 32
beta = 0.25

[data]
path = "{data}"

[train]
steps = 3
tokens_per_step = 256
micro_batch = 4
warmup_steps = 1
precision = "fp32"
device = "cpu"

[validation]
every = 0
batches = 1
"""


def write_shard(path: Path, tokens: list[int]) -> None:
    """256 little-endian int32: magic 20240520, version 1, count, zeros; then `count` little-endian uint16."""
    header = struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253)
    assert len(header) == 1024
    path.write_bytes(header + struct.pack(f"<{len(tokens)}H", *tokens))


def documents(generator: random.Random, tokens: int) -> list[int]:
    """End-of-text before each document, as in llm.c."""
    ids: list[int] = []
    while len(ids) < tokens:
        ids += [END_OF_TEXT, *generator.choices([300, 7, 4011, 50255, 0, 12], k=generator.randint(5, 60))]
    return ids[:tokens]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ranks of the size of GPT-2's without its file: every byte, then pairs and triples of bytes."""
    single = [bytes([byte]) for byte in range(256)]
    longer = (bytes(word) for length in (2, 3) for word in itertools.product(range(97, 137), repeat=length))
    words = [*single, *itertools.islice(longer, 50256 - 256)]
    assert len(words) == len(set(words)) == 50256
    path = tmp_path_factory.mktemp("ranks") / "gpt2.tiktoken"
    path.write_text("".join(f"{base64.b64encode(word).decode()} {rank}\n" for rank, word in enumerate(words)))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder as dev/data/fineweb.py leaves it behind, small."""
    folder = tmp_path / "edu_fineweb10B"
    folder.mkdir()
    generator = random.Random(2)
    write_shard(folder / "edu_fineweb_val_000000.bin", documents(generator, 700))
    write_shard(folder / "edu_fineweb_train_000001.bin", documents(generator, 1000))
    write_shard(folder / "edu_fineweb_train_000002.bin", documents(generator, 333))
    return folder


@pytest.fixture
def recipe(shards: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(RECIPE.format(data=shards))
    return path


def test_they_train_as_they_are(
    tda: Tda, recipe: Path, shards: Path, ranks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TDA_GPT2_VOCABULARY", str(ranks))
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    output = tmp_path / "run"
    trained = tda("train", recipe, "--output", output)
    errors = trained.stderr.decode()
    assert trained.returncode == 0, errors
    assert "1333 tokens to train on" in errors
    assert "700 held out, tokenizer gpt2" in errors
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == before

    step = output / "checkpoints" / "step-000003"
    assert json.loads((step / "config.json").read_text())["vocab_size"] == 50304
    assert (step / "gpt2.tiktoken").read_bytes() == ranks.read_bytes()
    dataset = json.loads((step / "state.json").read_text())["dataset"]
    assert dataset == {"tokenizer": "gpt2", "vocabulary_size": 50257, "train_tokens": 1333, "val_tokens": 700}
    first = json.loads((output / "metrics.jsonl").read_text().splitlines()[0])
    assert first["val_loss"] == pytest.approx(10.83, abs=0.1)  # ln 50304: nothing is known yet

    # Whoever has the checkpoint needs neither the shards nor the ranks.
    monkeypatch.delenv("TDA_GPT2_VOCABULARY")
    written = tda("generate", output, "--prompt", "abc", "--max-tokens", "3", cwd=tmp_path)
    assert written.returncode == 0, written.stderr.decode()


def test_without_ranks_they_are_refused(
    tda: Tda, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (REPOSITORY / "data" / "gpt2.tiktoken").exists():
        monkeypatch.setenv("TDA_GPT2_VOCABULARY", str(tmp_path / "absent"))
    else:
        monkeypatch.delenv("TDA_GPT2_VOCABULARY", raising=False)
    assert_refused(tda("train", recipe, "--output", tmp_path / "run"), "HINT: ")
    assert not (tmp_path / "run").exists()


def test_a_damaged_one_is_named(tda: Tda, recipe: Path, shards: Path, tmp_path: Path) -> None:
    shard = shards / "edu_fineweb_train_000002.bin"
    write_shard(shard, [END_OF_TEXT, 50257])
    expected = ("edu_fineweb_train_000002.bin", "token 1 has id 50257, expected less than 50257")
    assert_refused(tda("train", recipe, "--output", tmp_path / "run"), *expected)
    shard.write_bytes(shard.read_bytes()[:-1])
    expected = ("edu_fineweb_train_000002.bin", "promises 2 tokens (1028 bytes), the file has 1027 bytes")
    assert_refused(tda("train", recipe, "--output", tmp_path / "run"), *expected)
    assert not (tmp_path / "run").exists()
