"""Convolution of every task with weights of its own, and its derivatives of any order.

`convolution.py` has shapes, derivatives and the rule for tasks, `kernels.py` the arithmetic: one batched product over patches,
or PyTorch's own convolution (`library.py`), task by task, whichever is faster for the shape. `places.py`: TensorFlow's padding.
"""
