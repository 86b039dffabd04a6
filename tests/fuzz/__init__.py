"""Mutated files of strangers, put to every reader that clipsan has: see tests/benchmarks/fuzz.py."""
