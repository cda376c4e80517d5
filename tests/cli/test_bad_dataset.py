"""tda train on damaged data: one clear line that names the file, exit code 2, and no run directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from program import REPOSITORY, Tda, assert_refused


@pytest.fixture
def dataset(tda: Tda, tmp_path: Path) -> Path:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 400)
    folder = tmp_path / "data"
    options = ("--tokenizer", "byte", "--input", text, "--validation-fraction", "0.2", "--shard-tokens", "5000")
    result = tda("data", "prepare", *options, "--output", folder)
    assert result.returncode == 0, result.stderr.decode()
    return folder


def set_header(shard: Path, field: int, value: int) -> None:
    header = np.fromfile(shard, dtype="<i4", count=256)
    header[field] = value
    shard.write_bytes(header.tobytes() + shard.read_bytes()[1024:])


def set_token(shard: Path, position: int, token: int) -> None:
    tokens = np.fromfile(shard, dtype="<u2", offset=1024)
    tokens[position] = token
    shard.write_bytes(shard.read_bytes()[:1024] + tokens.tobytes())


def set_description(folder: Path, key: str, value: object) -> None:
    description = json.loads((folder / "dataset.json").read_text())
    description[key] = value
    (folder / "dataset.json").write_text(json.dumps(description))


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "truncated": (lambda d: truncate(d / "train_000001.bin", 5001), ["train_000001.bin", "the file has 5001 bytes"]),
    "truncated header": (lambda d: truncate(d / "val_000000.bin", 100), ["val_000000.bin", "too few"]),
    "empty shard": (lambda d: truncate(d / "train_000000.bin", 0), ["train_000000.bin", "0 bytes are too few"]),
    "wrong magic": (lambda d: set_header(d / "train_000000.bin", 0, 7), ["train_000000.bin", "magic number 7"]),
    "wrong version": (
        lambda d: set_header(d / "train_000000.bin", 1, 7),
        ["train_000000.bin", "version 7, expected 1"],
    ),
    "wrong count": (lambda d: set_header(d / "train_000002.bin", 2, 99), ["train_000002.bin", "promises 99 tokens"]),
    "id out of range": (
        lambda d: set_token(d / "train_000001.bin", 77, 300),
        ["train_000001.bin", "token 77 has id 300, expected less than 257"],
    ),
    "validation id out of range": (lambda d: set_token(d / "val_000000.bin", 0, 65535), ["val_000000.bin", "65535"]),
    "missing shard": (lambda d: (d / "train_000001.bin").unlink(), ["dataset.json", "train_tokens"]),
    "no shards": (lambda d: [path.unlink() for path in d.glob("train_*")], ["has no shard train_*.bin"]),
    "damaged description": (lambda d: truncate(d / "dataset.json", 30), ["dataset.json"]),
    "contradictory description": (lambda d: set_description(d, "val_tokens", 3), ["dataset.json", "val_tokens is 3"]),
    "wrong type": (lambda d: set_description(d, "vocabulary_size", "many"), ["dataset.json"]),
    "vocabulary beyond uint16": (lambda d: set_description(d, "vocabulary_size", 1 << 20), ["vocabulary_size"]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_dataset(tda: Tda, dataset: Path, tmp_path: Path, damage: str) -> None:
    spoil, expected = DAMAGE[damage]
    spoil(dataset)
    recipe = REPOSITORY / "configs" / "cpu" / "softmax.toml"
    result = tda("train", recipe, "--data.path", dataset, "--output", tmp_path / "run")
    assert_refused(result, *expected)
    assert not (tmp_path / "run").exists()


def test_text_shorter_than_a_window(tda: Tda, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("short\n")
    prepare = ("data", "prepare", "--tokenizer", "byte", "--output", tmp_path / "data")
    assert tda(*prepare, "--input", tmp_path / "text.txt", "--validation", tmp_path / "text.txt").returncode == 0
    recipe = REPOSITORY / "configs" / "cpu" / "softmax.toml"
    result = tda("train", recipe, "--data.path", tmp_path / "data", "--output", tmp_path / "run")
    assert_refused(result, "7 tokens do not fill one window")
    assert not (tmp_path / "run").exists()
