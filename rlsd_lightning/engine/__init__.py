"""A run over many measurements."""
