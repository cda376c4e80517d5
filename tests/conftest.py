"""What all Python tests share: where the program and the real data are."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

Tda = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture(scope="session")
def tda_binary() -> Path:
    """The program under test: TDA_BINARY, else build/tda."""
    binary = Path(os.environ.get("TDA_BINARY") or REPOSITORY / "build" / "tda")
    if not binary.exists():
        pytest.fail(f"no program at {binary}: run 'make' first, or name it with TDA_BINARY")
    return binary


@pytest.fixture(scope="session")
def tda(tda_binary: Path) -> Tda:
    """Runs the program: tda("data", "prepare", ..., input=b"...") with bytes in and out."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
        options.setdefault("timeout", 300)
        command = [str(tda_binary), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, check=False, **options)  # type: ignore[call-overload]

    return run


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of large real data: TDA_DATA, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("TDA_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (TDA_DATA names it)")
    return folder
