"""tda tokenize: golden files, agreement with tiktoken, byte-exact round trips, bad ids."""

from __future__ import annotations

import lzma
import os
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from program import REPOSITORY, Tda, assert_refused
from tiktoken.load import data_gym_to_mergeable_bpe_ranks, load_tiktoken_bpe

GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def encode(tda: Tda, text: bytes, *arguments: object) -> list[int]:
    result = tda("tokenize", *arguments, input=text)
    assert result.returncode == 0, result.stderr.decode()
    return [int(token) for token in result.stdout.split()]


def decode(tda: Tda, ids: str, *arguments: object) -> bytes:
    result = tda("tokenize", "--decode", *arguments, input=ids.encode())
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


@pytest.fixture(scope="session")
def gpt2_arguments(request: pytest.FixtureRequest) -> list[object]:
    """GPT-2's ranks: of TDA_GPT2_VOCABULARY, the project's data folder, or the real data."""
    if os.environ.get("TDA_GPT2_VOCABULARY") or (REPOSITORY / "data" / "gpt2.tiktoken").exists():
        return ["--tokenizer", "gpt2"]
    return ["--tokenizer", "gpt2", "--vocabulary", request.getfixturevalue("real_data") / "bpe"]


@pytest.fixture(scope="session")
def peer(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tiktoken.Encoding:
    """tiktoken with the ranks of vocab.bpe and encoder.json."""
    os.environ["TIKTOKEN_CACHE_DIR"] = str(tmp_path_factory.mktemp("tiktoken"))
    bpe = real_data / "bpe"
    ranks = data_gym_to_mergeable_bpe_ranks(str(bpe / "vocab.bpe"), str(bpe / "encoder.json"))
    return tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})


@pytest.mark.parametrize("name", ["golden", "golden-odd"])
def test_golden_files(tda: Tda, real_data: Path, name: str) -> None:
    bpe = real_data / "bpe"
    text = (bpe / f"{name}.txt").read_bytes()
    golden = np.fromfile(bpe / f"{name}.u16", dtype="<u2").tolist()
    for vocabulary in (bpe, bpe / "vocab.bpe", bpe / "encoder.json"):
        assert encode(tda, text, "--tokenizer", "gpt2", "--vocabulary", vocabulary) == golden
    ids = " ".join(map(str, golden))
    assert decode(tda, ids, "--tokenizer", "gpt2", "--vocabulary", bpe) == text


def characters_known_to_both(generator: random.Random, count: int) -> str:
    """Random characters that Unicode 14 or older assigns: what PCRE2 10.42 and every newer library classify alike."""
    assert unicodedata.unidata_version >= "13"
    blocks = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x500), (0x590, 0x700), (0x900, 0xE00), (0x1D00, 0x2700)]
    blocks += [(0x3000, 0x3100), (0x4E00, 0x9000), (0xAC00, 0xD700), (0x10000, 0x10300), (0x1F300, 0x1F650)]
    blocks += [(0x9, 0xE), (0x2000, 0x2030), (0, 0x110000)]
    text = ""
    while len(text) < count:
        character = chr(generator.randrange(*generator.choice(blocks)))
        if unicodedata.ucd_3_2_0.category(character) == "Cn" or unicodedata.category(character) in ("Cs", "Cn"):
            continue
        text += character * generator.choice((1, 1, 1, 2, 5))
        text += generator.choice(("", "", "", " ", "  ", "\n", "'s", "'LL", "\r\n", "a", "7"))
    return text


def test_random_unicode_equals_tiktoken(tda: Tda, real_data: Path, peer: tiktoken.Encoding) -> None:
    generator = random.Random(20240520)
    arguments = ("--tokenizer", "gpt2", "--vocabulary", real_data / "bpe")
    for _ in range(10):
        text = characters_known_to_both(generator, 20_000)
        assert encode(tda, text.encode(), *arguments) == peer.encode_ordinary(text)


def test_real_text_equals_tiktoken(tda: Tda, real_data: Path, peer: tiktoken.Encoding) -> None:
    with lzma.open(real_data / "text" / "val.txt.xz") as file:
        text = file.read(1_000_000).decode(errors="ignore")
    ids = encode(tda, text.encode(), "--tokenizer", "gpt2", "--vocabulary", real_data / "bpe")
    assert ids == peer.encode_ordinary(text)


@pytest.mark.parametrize("length", [3_000, 300_000])
def test_long_pieces_equal_tiktoken(tda: Tda, real_data: Path, peer: tiktoken.Encoding, length: int) -> None:
    generator = random.Random(length)
    arguments = ("--tokenizer", "gpt2", "--vocabulary", real_data / "bpe")
    for alphabet in ("a", "ab", "the", "=-", " ", "\n", "你好"):
        text = "".join(generator.choice(alphabet) for _ in range(length))
        assert encode(tda, text.encode(), *arguments) == peer.encode_ordinary(text)


def test_saved_ranks_are_those_of_tiktoken(tda: Tda, real_data: Path, peer: tiktoken.Encoding, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello world")
    output = tmp_path / "out"
    vocabulary = ("--tokenizer", "gpt2", "--vocabulary", real_data / "bpe")
    result = tda("data", "prepare", *vocabulary, "--input", tmp_path / "a.txt", "--output", output)
    assert result.returncode == 0, result.stderr.decode()
    assert load_tiktoken_bpe(str(output / "gpt2.tiktoken")) == peer._mergeable_ranks
    for where in (output, output / "gpt2.tiktoken"):
        assert encode(tda, b"hello world", "--tokenizer", "gpt2", "--vocabulary", where) == [31373, 995]
    environment = {**os.environ, "TDA_GPT2_VOCABULARY": str(output)}
    result = tda("tokenize", "--tokenizer", "gpt2", input=b"hello world", env=environment)
    assert result.stdout == b"31373 995\n"


def arbitrary_bytes(seed: int, size: int) -> bytes:
    generator = random.Random(seed)
    text = bytearray()
    while len(text) < size:
        text += generator.choice((generator.randbytes(7), "añ 你🙂\r\n".encode()[: generator.randrange(14)], b"  the"))
    return bytes(text)


@pytest.mark.parametrize("size", [0, 1, 100, 400_000])
def test_arbitrary_bytes_round_trip(tda: Tda, gpt2_arguments: list[object], size: int) -> None:
    text = arbitrary_bytes(size, size)
    for arguments in (["--tokenizer", "byte"], gpt2_arguments):
        ids = encode(tda, text, *arguments)
        assert decode(tda, " ".join(map(str, ids)), *arguments) == text


def test_byte_is_the_default(tda: Tda) -> None:
    assert tda("tokenize", input=b"ab\n").stdout == b"97 98 10\n"
    assert tda("tokenize", input=b"").stdout == b""
    assert encode(tda, b"<|endoftext|>\n") == list(b"<|endoftext|>\n")


def test_decode_takes_any_white_space(tda: Tda, gpt2_arguments: list[object]) -> None:
    assert decode(tda, "\n\t97\r\n98   99\f100") == b"abcd"
    assert decode(tda, "104 256 105") == b"h<|endoftext|>i"
    assert decode(tda, "") == b""
    assert decode(tda, "31373\n995 50256", *gpt2_arguments) == b"hello world<|endoftext|>"


@pytest.mark.parametrize("bad", ["257", "319", "-1", "4294967297", "1.5", "x", "1,2", "0x10"])
def test_bad_ids_are_refused(tda: Tda, bad: str) -> None:
    assert_refused(tda("tokenize", "--decode", input=f"97 {bad} 98".encode()), bad)


def test_padded_ids_are_refused(tda: Tda, gpt2_arguments: list[object]) -> None:
    assert_refused(tda("tokenize", "--decode", *gpt2_arguments, input=b"50257"), "50257 is out of range")


def test_missing_and_damaged_ranks_are_refused(tda: Tda, tmp_path: Path) -> None:
    arguments = ("tokenize", "--tokenizer", "gpt2", "--vocabulary")
    assert_refused(tda(*arguments, tmp_path / "none.tiktoken", input=b"a"), "none.tiktoken", "fetch-gpt2-vocabulary")
    assert_refused(tda(*arguments, tmp_path, input=b"a"), "vocab.bpe")
    (tmp_path / "damaged.tiktoken").write_bytes(b"IQ== 0\nIg== 1\ngarbage\n")
    assert_refused(tda(*arguments, tmp_path / "damaged.tiktoken", input=b"a"), "damaged.tiktoken, line 3")
    (tmp_path / "short.tiktoken").write_bytes(b"IQ== 0\nIg== 1\n")
    assert_refused(tda(*arguments, tmp_path / "short.tiktoken", input=b"a"), "holds 2 tokens, expected the 50256")


def test_contradictory_encoder_is_refused(tda: Tda, real_data: Path, tmp_path: Path) -> None:
    vocabulary = real_data / "bpe"
    (tmp_path / "vocab.bpe").write_bytes((vocabulary / "vocab.bpe").read_bytes())
    encoder = (vocabulary / "encoder.json").read_text()
    (tmp_path / "encoder.json").write_text(encoder.replace('"hello": 31373', '"hello": 31374'))
    assert_refused(
        tda("tokenize", "--tokenizer", "gpt2", "--vocabulary", tmp_path, input=b"a"), "encoder.json", "31374"
    )
    (tmp_path / "encoder.json").write_text(encoder[:1000])
    assert_refused(tda("tokenize", "--tokenizer", "gpt2", "--vocabulary", tmp_path, input=b"a"), "encoder.json")
