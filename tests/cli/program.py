"""The program under test as tests see it, and how it has to answer bad input."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

Tda = Callable[..., "subprocess.CompletedProcess[bytes]"]


def assert_refused(result: subprocess.CompletedProcess[bytes], *expected: str) -> None:
    """Exit code 2, nothing on stdout, on stderr one line `error: …` that contains `expected`, then at most a HINT."""
    errors = result.stderr.decode()
    assert result.returncode == 2, errors
    assert result.stdout == b""
    lines = [line for line in errors.splitlines() if not line.startswith("prepare: ")]
    assert lines, "nothing on stderr"
    assert lines[0].startswith("error: "), errors
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("HINT: ")), errors
    for text in expected:
        assert text in errors, errors
