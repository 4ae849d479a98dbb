"""Particle methods, one file per paper."""
