"""tda data prepare: formats, documents, held-out text, and nothing half-written whatever goes wrong."""

from __future__ import annotations

import gzip
import json
import lzma
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from program import Tda, assert_refused

END_OF_TEXT = 256


def pack_zst(content: bytes) -> bytes:
    if shutil.which("zstd") is None:
        pytest.skip("no program zstd to pack with (the C++ tests unpack .zst in any case)")
    return subprocess.run(["zstd", "-q", "-c"], input=content, capture_output=True, check=True).stdout


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    ".txt": bytes,
    ".xz": lzma.compress,
    ".gz": gzip.compress,
    ".zst": pack_zst,
}


def shard_tokens(path: Path) -> list[int]:
    header = np.fromfile(path, dtype="<i4", count=256)
    tokens = np.fromfile(path, dtype="<u2", offset=1024)
    assert header[:3].tolist() == [20240520, 1, len(tokens)]
    assert not header[3:].any()
    return tokens.tolist()


def split_tokens(output: Path, split: str) -> list[int]:
    return [token for path in sorted(output.glob(f"{split}_*.bin")) for token in shard_tokens(path)]


def documents_as_tokens(*documents: bytes) -> list[int]:
    return [token for document in documents for token in (END_OF_TEXT, *document)]


def assert_only(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.mark.parametrize("extension", PACKINGS)
def test_formats(tda: Tda, tmp_path: Path, extension: str) -> None:
    text = b"one\n<|endoftext|>\ntwo <|endoftext|>\n\n<|endoftext|>\n"
    (tmp_path / f"text{extension}").write_bytes(PACKINGS[extension](text))
    output = tmp_path / "out"
    result = tda("data", "prepare", "--tokenizer", "byte", "--input", tmp_path / f"text{extension}", "--output", output)
    assert result.returncode == 0, result.stderr.decode()
    assert_only(output, "dataset.json", "tokenizer.json", "train_000000.bin")
    assert shard_tokens(output / "train_000000.bin") == documents_as_tokens(b"one\n", b"two <|endoftext|>\n\n")
    description = json.loads((output / "dataset.json").read_text())
    assert description["tokenizer"] == "byte"
    assert description["vocabulary_size"] == 257
    assert description["end_of_text"] == END_OF_TEXT
    assert description["train_tokens"] == len(split_tokens(output, "train"))
    assert description["val_tokens"] == 0
    assert description["documents"] == 2
    assert [source["path"] for source in description["sources"]] == [str(tmp_path / f"text{extension}")]


def test_several_files_and_validation(tda: Tda, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    output = tmp_path / "new" / "folders" / "out"
    arguments = ["--input", tmp_path / "a", tmp_path / "b", "--validation", tmp_path / "c", "--output", f"{output}/"]
    result = tda("data", "prepare", "--tokenizer", "byte", *arguments)
    assert result.returncode == 0, result.stderr.decode()
    assert split_tokens(output, "train") == documents_as_tokens(b"a", b"b")
    assert shard_tokens(output / "val_000000.bin") == documents_as_tokens(b"c")


def test_input_may_be_a_pipe(tda_binary: Path, tmp_path: Path) -> None:
    command = f"{tda_binary} data prepare --tokenizer byte --input <(printf abc) --output {tmp_path}/out"
    subprocess.run(["bash", "-c", command], check=True, capture_output=True)
    assert split_tokens(tmp_path / "out", "train") == documents_as_tokens(b"abc")


def test_the_same_text_is_held_out_for_every_tokenizer(tda: Tda, real_data: Path, tmp_path: Path) -> None:
    text = real_data / "text" / "val.txt.xz"
    held_out = {}
    for tokenizer in ("byte", "gpt2"):
        output = tmp_path / tokenizer
        vocabulary = () if tokenizer == "byte" else ("--vocabulary", real_data / "bpe")
        arguments = ["--tokenizer", tokenizer, *vocabulary, "--input", text, "--output", output]
        result = tda("data", "prepare", *arguments, "--validation-fraction", "0.1")
        assert result.returncode == 0, result.stderr.decode()
        decoded = tda(
            "tokenize",
            "--decode",
            "--tokenizer",
            tokenizer,
            *vocabulary,
            input=" ".join(map(str, split_tokens(output, "val"))).encode(),
        )
        held_out[tokenizer] = decoded.stdout
    assert held_out["byte"] == held_out["gpt2"]
    with lzma.open(text) as file:
        documents = file.read().split(b"<|endoftext|>\n")[:-1]
    bytes_held = len(held_out["byte"].replace(b"<|endoftext|>", b""))
    assert 0.08 < bytes_held / sum(map(len, documents)) <= 0.1
    assert held_out["byte"].split(b"<|endoftext|>")[1:] == documents[-held_out["byte"].count(b"<|endoftext|>") :]


def prepare(tda: Tda, folder: Path, *arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    return tda("data", "prepare", "--tokenizer", "byte", "--output", folder / "out", *arguments, **options)


def test_bad_text_is_refused(tda: Tda, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "markers.txt").write_text("<|endoftext|>\n" * 3)
    (tmp_path / "cut.xz").write_bytes(lzma.compress(b"text" * 1000)[:-9])
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"text" * 1000)[:-9])
    (tmp_path / "plain.xz").write_text("text")
    names = [path.name for path in tmp_path.iterdir()]
    for name, expected in {
        "missing.txt": "No such file or directory",
        "empty.txt": "gives no token",
        "markers.txt": "gives no token",
        "cut.xz": "xz data is damaged or incomplete",
        "cut.gz": "gzip data is damaged or incomplete",
        "plain.xz": "does not begin as a .xz file",
        ".": "Is a directory",
    }.items():
        assert_refused(prepare(tda, tmp_path, "--input", tmp_path / name), expected, str(tmp_path / name))
        assert_only(tmp_path, *names)


def test_bad_requests_are_refused(tda: Tda, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("text\n" * 10)
    for arguments, expected in [
        (["--validation-fraction", "1.5"], "validation fraction is 1.5, expected at least 0 and less than 1"),
        (["--validation-fraction", "-1"], "validation fraction is -1"),
        (["--validation-fraction", "nan"], "validation fraction is nan"),
        (["--validation-fraction", "0.1", "--validation", text], "exclude each other"),
        (["--shard-tokens", "0"], "shard size is 0"),
        (["--tokenizer", "word"], ""),
    ]:
        assert_refused(prepare(tda, tmp_path, "--input", text, *arguments), expected)
        assert_only(tmp_path, "text.txt")


def test_output_with_files_is_refused(tda: Tda, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    assert_refused(prepare(tda, tmp_path, "--input", tmp_path / "text.txt"), "is not an empty folder")
    assert_only(tmp_path, "text.txt", "out")
    assert_only(tmp_path / "out", "mine")


@pytest.mark.parametrize("limit", [0, 512, 1024, 5000, 100_000, 200_000])
def test_full_disk(tda: Tda, tmp_path: Path, limit: int) -> None:
    """A limit on file sizes stands for a full disk: the write that crosses it fails."""
    (tmp_path / "text.txt").write_bytes(b"a text of twenty by\n" * 10_000)

    def set_limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    result = prepare(tda, tmp_path, "--input", tmp_path / "text.txt", preexec_fn=set_limit)
    assert_refused(result, "cannot write", "File too large")
    assert_only(tmp_path, "text.txt")
    assert prepare(tda, tmp_path, "--input", tmp_path / "text.txt").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_nothing(tda_binary: Path, tmp_path: Path, number: signal.Signals) -> None:
    """The text comes through a pipe that stays open, so the program is certainly at work when the signal comes."""
    command = [tda_binary, "data", "prepare", "--tokenizer", "byte", "--input", "/dev/stdin"]
    with subprocess.Popen(
        [*command, "--output", tmp_path / "out"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"x" * (1 << 20))
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        output, errors = process.communicate(b"x" * (1 << 20), timeout=60)
    assert process.returncode == 128 + number, errors
    assert output == b""
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_text(tda_binary: Path, real_data: Path, tmp_path: Path) -> None:
    """20 MB of real text in one document take no more than 64 MB beyond what 10 kB take."""

    def peak_kilobytes(size: int) -> int:
        script = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=2);"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        vocabulary = real_data / "bpe"
        program = [tda_binary, "data", "prepare", "--tokenizer", "gpt2", "--vocabulary", vocabulary]
        text = tmp_path / f"{size}.txt"
        with lzma.open(real_data / "text" / "train-00.txt.xz") as file:
            text.write_bytes(file.read(size).replace(b"<|endoftext|>\n", b""))
        command = ["python3", "-c", script, *program, "--input", text, "--output", tmp_path / f"out{size}"]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    assert peak_kilobytes(20_000_000) - peak_kilobytes(10_000) < 64 * 1024
