"""Draws particles for measurements: ``python train.py task=inpaint``, ``python train.py --help``."""

from rlsd_lightning.cli.command import command

if __name__ == "__main__":
    command()
