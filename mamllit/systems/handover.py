"""Hands an already computed meta-gradient to the parameters, through Lightning's `loss.backward()`."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def with_gradient(loss: Tensor, gradients: Iterable[Tensor], parameters: Iterable[Tensor]) -> Tensor:
    """The loss, whose `backward` gives the parameters these gradients.

    So Lightning's `loss.backward()`, and with it DDP's hooks, clipping, accumulation and loss scaling, work as usual.
    """
    ready = list(gradients)
    return _Ready.apply(loss, len(ready), *ready, *parameters)


class _Ready(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, count: int, *gradients_and_parameters: Tensor) -> Tensor:
        ctx.count = count
        ctx.save_for_backward(*gradients_and_parameters[:count])
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grad_outputs
        return None, None, *(None,) * ctx.count, *(gradient * scale for gradient in ctx.saved_tensors)
