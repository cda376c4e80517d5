"""Loads the shared library that registers ``torch.ops.threshold_attention``."""

from __future__ import annotations

from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("libthreshold_attention.so")


def load_library() -> None:
    """Registers the operators once.

    Raises:
        ImportError: the library is missing or was built for another version of PyTorch.
    """
    if not LIBRARY.is_file():
        raise ImportError(
            f"{LIBRARY} is missing: threshold_attention was not installed. "
            "From a checkout: pip install --no-build-isolation ."
        )
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        # PyTorch's C++ interface changes between minor versions; an undefined symbol says so poorly.
        raise ImportError(
            f"{LIBRARY} does not load with PyTorch {torch.__version__}; it was probably built for another version. "
            f"Rebuild it with: pip install --no-build-isolation --force-reinstall --no-deps .  ({error})"
        ) from error
