"""Particle methods, one paper a file."""
