"""Benchmarks, run as scripts: python benchmarks/gmm.py."""
