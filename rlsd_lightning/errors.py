"""Errors that a user can mend, told apart from bugs: the command line prints them in one line."""

__all__ = ["InputError", "NonFiniteError", "StoppedError"]


class InputError(ValueError):
    """What the user gave can't be used; the message says what was expected, what came and what to do."""


class NonFiniteError(ArithmeticError):
    """A loss or a particle became infinite or not a number; the measurement's last checkpoint is still good."""


class StoppedError(Exception):
    """A signal ended the run between two steps; what it had is saved."""
