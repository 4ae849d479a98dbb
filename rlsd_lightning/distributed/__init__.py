"""Particles and measurements over several processes."""
