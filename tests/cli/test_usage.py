"""The frame of the program: version, help, exit codes, wrong usage."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from program import Tda, assert_refused


def test_version(tda: Tda) -> None:
    result = tda("--version")
    assert result.returncode == 0
    assert re.fullmatch(rb"tda \d+\.\d+\.\d+ .*\n", result.stdout)


@pytest.mark.parametrize("arguments", [["help"], ["--help"], ["help", "tokenize"], ["help", "data", "prepare"]])
def test_help_is_a_result(tda: Tda, arguments: list[str]) -> None:
    result = tda(*arguments)
    assert result.returncode == 0
    assert b"Usage: tda" in result.stdout
    assert result.stderr == b""


def test_help_of_every_command_says_what_it_does(tda: Tda) -> None:
    listing = tda("help").stdout.decode().split("Subcommands:")[1]
    commands = re.findall(r"^  (\w+) ", listing, re.MULTILINE)
    assert {"tokenize", "data", "help"} <= set(commands)
    for command in commands:
        result = tda("help", command)
        assert result.returncode == 0
        assert f"Usage: tda {command}" in result.stdout.decode()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["needs a command"]),
        (["data"], ["`tda data` needs a command"]),
        (["tokenzie"], ["unknown command 'tokenzie'", "did you mean 'tokenize'?"]),
        (["data", "prepair"], ["unknown command 'prepair' of `tda data`", "did you mean 'prepare'?"]),
        (["help", "tokeniez"], ["unknown command 'tokeniez'", "did you mean 'tokenize'?"]),
        (["--verison"], ["unknown option '--verison'", "did you mean '--version'?"]),
        (["tokenize", "--decoed"], ["unknown option '--decoed' of `tda tokenize`", "did you mean '--decode'?"]),
        (["tokenize", "--tokenizr=byte"], ["unknown option '--tokenizr'", "did you mean '--tokenizer'?"]),
        (["data", "prepare", "--inptu", "x"], ["unknown option '--inptu'", "did you mean '--input'?"]),
        (["tokenize", "--tokenizer"], ["--tokenizer"]),
        (["tokenize", "surplus"], ["unexpected argument 'surplus'"]),
        (["data", "prepare", "--tokenizer", "byte", "--output", "x"], ["--input is required"]),
        (["tokenize", "--tokenizer", "bpe"], ["unknown tokenizer 'bpe': expected byte or gpt2"]),
    ],
)
def test_wrong_usage(tda: Tda, tmp_path: Path, arguments: list[str], expected: list[str]) -> None:
    assert_refused(tda(*arguments, cwd=tmp_path), *expected)
    assert list(tmp_path.iterdir()) == []


def test_full_standard_output_is_an_error(tda_binary: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    with full.open("wb") as out:
        for arguments in (["--version"], ["help"], ["tokenize"]):
            result = subprocess.run(
                [tda_binary, *arguments], input=b"text", stdout=out, stderr=subprocess.PIPE, check=False
            )
            assert result.returncode == 2, arguments
            assert result.stderr.startswith(b"error: cannot write"), arguments
