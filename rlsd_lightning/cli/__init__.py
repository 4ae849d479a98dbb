"""The command line: the only part that knows Hydra."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
"""Folder of ``train.py``, ``configs/`` and ``data/``."""
CONFIGS = PROJECT / "configs"
