"""Batch norm with batch statistics, and its derivatives of any order."""
