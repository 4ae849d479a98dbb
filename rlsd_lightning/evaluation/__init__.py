"""Figures of merit, health metrics and feature networks."""
