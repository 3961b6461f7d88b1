"""How a meta-gradient that is ready reaches the parameters: through Lightning's `loss.backward()`, or straight."""

from typing import Any

import torch
from torch import Tensor


class ReadyGradient(torch.autograd.Function):
    """A loss whose gradient is known: `backward` hands it to the parameters.

    So Lightning's `loss.backward()`, and with it DDP's hooks, clipping, accumulation and loss scaling, work as ever.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, count: int, *gradient_and_params: Tensor) -> Tensor:
        ctx.count = count
        ctx.save_for_backward(*gradient_and_params[:count])
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grad_outputs
        return None, None, *(None,) * ctx.count, *(gradient * scale for gradient in ctx.saved_tensors)


def hand_over(gradients: Any, parameters: list[Tensor]) -> None:
    """Make each gradient its parameter's `.grad`, laid out as the parameter is, which autograd sees to and optimisers need."""
    for gradient, value in zip(gradients, parameters, strict=True):
        same = gradient.stride() == value.stride()
        value.grad = gradient if same else torch.empty_like(value, requires_grad=False).copy_(gradient)
