"""Convolution of every task with weights of its own, and its derivatives of any order."""
