"""Batch norm with batch statistics, shift and ReLU as one operator, and its derivatives of any order.

`normalise.py` has derivatives and the rule for tasks, `kernels.py` the formulas, `library.py` the same for one task by PyTorch.
"""
