"""The program under test as tests see it, and how it has to answer bad input."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("TDA_BINARY") or REPOSITORY / "build" / "tda")

Tda = Callable[..., "subprocess.CompletedProcess[bytes]"]


def text_of(output: str | bytes) -> str:
    return output if isinstance(output, str) else output.decode(errors="replace")


def assert_refused(
    result: subprocess.CompletedProcess[bytes] | subprocess.CompletedProcess[str],
    *expected: str,
    code: int = 2,
    at_work: bool = False,
) -> None:
    """Exit code `code`, nothing on stdout, on stderr one line `error: …`, then at most a HINT; all hold `expected`.

    `at_work`: the program had begun, so that lines of progress may stand around the error.
    """
    errors = text_of(result.stderr)
    assert result.returncode == code, errors
    assert text_of(result.stdout) == ""
    lines = [line for line in errors.splitlines() if not line.startswith("prepare: ")]
    if at_work:
        lines = [line for line in lines if line.startswith(("error: ", "HINT: "))]
    assert lines, "nothing on stderr"
    assert lines[0].startswith("error: "), errors
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("HINT: ")), errors
    for text in expected:
        assert text in errors, errors


def obey_permissions() -> None:
    """In a child: root without these capabilities is refused by permission bits as anybody is."""
    if os.geteuid() != 0:
        return
    drop_from_bounding_set = 24
    for override_writing_and_reading in (1, 2):
        if ctypes.CDLL(None, use_errno=True).prctl(drop_from_bounding_set, override_writing_and_reading, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "cannot give up a capability")


def sign_checkpoint(step_folder: Path) -> None:
    """Makes the manifest agree with the files, so that damage reaches the code behind the checksums."""
    path = step_folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, entry in manifest["files"].items():
        content = (step_folder / name).read_bytes()
        entry.update(bytes=len(content), crc32=f"{zlib.crc32(content):08x}")
    del manifest["manifest_crc32"]
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["manifest_crc32"] = f"{zlib.crc32(canonical.encode()):08x}"
    path.write_text(json.dumps(manifest))
