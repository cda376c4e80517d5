"""GPU tests are collected only where a CUDA device is."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "torch"))
collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
