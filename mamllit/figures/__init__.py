"""Functions that draw a matplotlib Figure; no input or output."""
