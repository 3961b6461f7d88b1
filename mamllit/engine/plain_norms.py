"""PyTorch's norms as sums and products, used where its own operators are wrong or use the statistics of the wrong examples.

Under `torch.func.vmap` the derivative of an affine layer, batch or instance norm counts its mean and variance as constants, so
that a second derivative is wrong (pytorch/functorch issue 534). Made of plain operators it is right. The batch norm here can
use the statistics of the first rows alone: that makes the inductive reading of a network whose batch norm is PyTorch's.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mamllit.backbones.first_rows import first_rows
from mamllit.backbones.norm import wide


class PlainNorms(TorchFunctionMode):
    """Within, `torch.nn.functional`'s layer, batch and instance norm, and so the modules of `torch.nn`, are the ones below.

    `statistics_rows`: the batch norm uses the statistics of the first so many examples; None for all.
    """

    def __init__(self, statistics_rows: int | None = None) -> None:
        super().__init__()
        self.plain: dict[Any, Callable[..., Any]] = {
            **PLAIN,
            F.batch_norm: partial(batch_norm, statistics_rows=statistics_rows),
        }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self.plain.get(func, func)(*args, **(kwargs or {}))


def layer_norm(
    x: Tensor, normalized_shape: list[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`torch.nn.functional.layer_norm`."""
    z = _normalised(x, x, tuple(range(-len(normalized_shape), 0)), eps)
    return _scaled(z, weight, bias).to(x.dtype)


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    statistics_rows: int | None = None,
) -> Tensor:
    """`torch.nn.functional.batch_norm` by the statistics of the batch; any other is left to PyTorch."""
    if not training or running_mean is not None or x.numel() == x.shape[1]:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    dims = (0, *range(2, x.dim()))
    channels = (-1, *(1,) * (x.dim() - 2))
    z = _normalised(x, first_rows(x, statistics_rows), dims, eps)
    return _scaled(z, _shaped(weight, channels), _shaped(bias, channels)).to(x.dtype)


def instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.instance_norm` by the statistics of the input; any other is left to PyTorch."""
    if not use_input_stats or running_mean is not None or x[0, 0].numel() == 1:
        return F.instance_norm(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    channels = (-1, *(1,) * (x.dim() - 2))
    z = _normalised(x, x, tuple(range(2, x.dim())), eps)
    return _scaled(z, _shaped(weight, channels), _shaped(bias, channels)).to(x.dtype)


PLAIN: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: layer_norm,
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
}


def _normalised(x: Tensor, of: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """`x` less the mean of `of`, over its standard deviation; in float32 at least."""
    x, of = wide(x), wide(of)
    mean = of.mean(dims, keepdim=True)
    variance = (of - mean).square().mean(dims, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + eps)


def _scaled(z: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    z = z if weight is None else z * weight
    return z if bias is None else z + bias


def _shaped(value: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    return None if value is None else value.reshape(shape)
