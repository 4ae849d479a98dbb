"""Measures of a set of particles as a whole, and choices from it."""
