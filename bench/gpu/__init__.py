"""The operator on a CUDA device beside its peers: one table per claim, and the numbers as JSON.

``python -m bench.gpu --help`` from the root of the repository; ``scripts/gpu/bench.sh`` adds the built library.
"""
