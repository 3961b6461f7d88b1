"""Families of curves: sine waves and those of the probabilistic papers."""
