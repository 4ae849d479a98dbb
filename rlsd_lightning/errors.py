"""Errors that a user can mend, told apart from bugs: the command line prints them in one line."""

__all__ = ["InputError", "LostError", "NonFiniteError", "StoppedError"]


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
