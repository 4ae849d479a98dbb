"""Errors that a user can mend, told apart from bugs: the command line prints them in one line."""

__all__ = ["LOADING_ERRORS", "InputError", "LostError", "NonFiniteError", "StoppedError", "first_line"]

LOADING_ERRORS = (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError)
"""What diffusers and transformers raise for weights that are not there, not whole, or not theirs."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class InputError(ValueError):
    """What the user gave can't be used; the message says what was expected, what came and what to do."""


class LostError(Exception):
    """Another process of the run is gone or can't be reached; what is saved is good. The message is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class NonFiniteError(ArithmeticError):
    """A loss or a particle became infinite or not a number; the last checkpoint is still good.

    Args:
        message: What happened.
        measurements: Names of those it happened to.
    """

    def __init__(self, message: str, measurements: list[str]) -> None:
        super().__init__(message)
        self.measurements = measurements


class StoppedError(Exception):
    """A signal ended the run between two steps; what it had is saved."""
