"""Subcommands, a module each: ``main`` takes the arguments and returns the exit code."""
