"""Reads pictures, arrays and masks from files, and tells what their values and axes mean.

Whatever a library raises while it reads becomes an :class:`~rlsd_lightning.errors.InputError` that names the file.
"""
