"""A ready gradient handed to the parameters; the way through `loss.backward()` is test_meta_learner.py's."""

import torch

from mamllit.systems.handover import hand_over


def test_a_gradient_is_laid_out_as_its_parameter_is() -> None:
    value, gradient = torch.nn.Parameter(torch.zeros(2, 3)), torch.arange(6.0).view(3, 2).t()
    hand_over([gradient], [value])
    assert value.grad is not None
    assert value.grad.stride() == value.stride()
    assert torch.equal(value.grad, gradient)
    kept = torch.ones(2, 3)
    hand_over([kept], [value])
    assert value.grad is kept
