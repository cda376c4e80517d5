"""The package as a whole: one library for every Python, typed, documented."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import threshold_attention as ta
from threshold_attention._library import LIBRARY


def test_library_holds_no_symbol_of_libpython():
    symbols = subprocess.run(
        [shutil.which("nm") or "nm", "-D", "--undefined-only", LIBRARY], check=True, capture_output=True, text=True
    ).stdout
    assert "torch" in symbols, "nm printed no symbols at all"
    assert not re.findall(r"\b_?Py[A-Z_]\w*", symbols)
    needed = subprocess.run(["readelf", "-d", LIBRARY], check=True, capture_output=True, text=True).stdout
    assert "libtorch_cpu.so" in needed
    assert not re.search(r"libpython|libtorch_python", needed)


def test_package_is_typed_and_documented():
    assert Path(ta.__file__).with_name("py.typed").is_file()
    for name in ta.__all__:
        assert inspect.getdoc(getattr(ta, name)), name


def test_missing_library_says_how_to_install(tmp_path):
    shutil.copytree(Path(ta.__file__).parent, tmp_path / "threshold_attention")
    (tmp_path / "threshold_attention" / LIBRARY.name).unlink()
    result = subprocess.run(
        [sys.executable, "-c", "import threshold_attention"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "pip install --no-build-isolation ." in result.stderr


def test_foreign_library_says_to_rebuild(tmp_path):
    shutil.copytree(Path(ta.__file__).parent, tmp_path / "threshold_attention")
    (tmp_path / "threshold_attention" / LIBRARY.name).write_bytes(b"not a library")
    result = subprocess.run(
        [sys.executable, "-c", "import threshold_attention"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "built for another version" in result.stderr


@pytest.mark.parametrize("function", [ta.threshold_rela, ta.differential_threshold_rela])
def test_signatures_keep_options_keyword_only(function):
    parameters = inspect.signature(function).parameters
    tensors = ["q", "k", "v"] if function is ta.threshold_rela else ["q1", "k1", "q2", "k2", "v"]
    assert list(parameters)[: len(tensors)] == tensors
    assert all(p.kind is p.KEYWORD_ONLY for name, p in parameters.items() if name not in tensors)


@pytest.mark.parametrize("function", [ta.threshold_rela_varlen, ta.differential_threshold_rela_varlen])
def test_packed_signatures_follow_those_of_flash_attention(function):
    parameters = inspect.signature(function).parameters
    tensors = ["q", "k", "v"] if function is ta.threshold_rela_varlen else ["q1", "k1", "q2", "k2", "v"]
    positional = [*tensors, "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"]
    assert list(parameters)[: len(positional)] == positional
    assert all(p.kind is p.KEYWORD_ONLY for name, p in parameters.items() if name not in positional)
