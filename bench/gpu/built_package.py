"""The package under test, imported when it is first needed: rendering and most tests do without its library."""

from __future__ import annotations

import importlib
from types import ModuleType


def built_package() -> ModuleType:
    """``threshold_attention``. Raises ImportError if it or its library is not there."""
    return importlib.import_module("threshold_attention")
