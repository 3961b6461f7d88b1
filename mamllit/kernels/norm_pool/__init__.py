"""Batch norm, shift, ReLU and max-pooling as one operator."""
