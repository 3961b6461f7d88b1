"""A gradient that is ready, handed to the parameters by `loss.backward()`."""

import torch

from mamllit.systems.handover import with_gradient


def test_backward_gives_the_parameters_the_gradient_times_what_comes_from_outside() -> None:
    """The layout is the parameter's, which a fused optimiser needs."""
    value, gradient = torch.nn.Parameter(torch.zeros(2, 3)), torch.arange(6.0).view(3, 2).t()
    loss = with_gradient(torch.tensor(5.0), [gradient], [value])
    assert loss.item() == 5
    (loss / 2).backward()
    assert value.grad is not None and value.grad.stride() == value.stride()
    assert torch.equal(value.grad, gradient / 2)
    with_gradient(torch.tensor(1.0), [gradient], [value]).backward()  # accumulates
    assert torch.equal(value.grad, gradient * 1.5)
