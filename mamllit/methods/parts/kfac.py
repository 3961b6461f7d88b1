"""The Fisher information of a network's layers in Kronecker factors, as a differentiable function of the parameters.

J. Martens, R. Grosse 2015 (linear layers), R. Grosse, J. Martens 2016 (convolutions). A layer's block of the Fisher of n
examples is approximated by A x G (a Kronecker product): A [a, a] sums over examples and positions the products of the
layer's inputs, with a 1 appended for the bias; G [o, o] is the mean over examples and positions of the products of the
derivatives of log p by its outputs, for labels that the model itself would give. For one linear layer and a Gaussian output
this is exact.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from mamllit.backbones import SameConv2d
from mamllit.core.inner_loop import Params
from mamllit.methods.parts.layers import names_in


class Factors(NamedTuple):
    """The factors of one layer as what they are products of: A = rows' rows [a, a] and G = slopes' slopes [o, o]."""

    rows: Tensor  # [N, a], N examples and positions
    slopes: Tensor  # [M, o], M = N times the vectors of `roots`

    @property
    def inputs(self) -> Tensor:
        """A [a, a]."""
        return self.rows.mT @ self.rows

    @property
    def outputs(self) -> Tensor:
        """G [o, o]."""
        return self.slopes.mT @ self.slopes


def check_layers(backbone: nn.Module, layers: list[str]) -> None:
    """Raise `ValueError` for a layer of a kind whose factors are not known."""
    for name in layers:
        if not isinstance(layer := backbone.get_submodule(name), (nn.Linear, SameConv2d)):
            raise ValueError(
                f"the Fisher of layer {name!r}, a {type(layer).__name__}, has no Kronecker factors here; use torch.nn.Linear "
                "and mamllit.backbones.SameConv2d, or freeze the layer's parameters in the inner loop"
            )


def fisher(
    backbone: nn.Module, layers: list[str], params: Params, x: Tensor, roots: Callable[[Tensor], Tensor]
) -> dict[str, Factors]:
    """The factors of each of `layers` for the examples `x` [n, ...].

    Args:
        params: the parameters, or some of them, that the network runs with.
        roots: from the network's output [n, d] to C vectors [C, n, d], whose products r r' summed over C are the Fisher of
            the output itself.
    """
    _, inputs, outputs = _run(backbone, layers, params, x)

    def tapped(taps: Params) -> Tensor:
        return _run(backbone, layers, params, x, taps)[0]

    output, pull = vjp(tapped, {name: torch.zeros_like(value) for name, value in outputs.items()})  # type: ignore[misc]  # three with has_aux
    (gradients,) = vmap(pull)(roots(output))
    factors = {}
    for name in layers:
        layer = backbone.get_submodule(name)
        rows = _rows(layer, inputs[name])
        if getattr(layer, "bias", None) is not None:
            rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
        slopes = _channels_last(layer, gradients[name]).flatten(0, -2)
        factors[name] = Factors(rows, slopes / len(rows) ** 0.5)
    return factors


def log_det(factors: dict[str, Factors], damping: float) -> Tensor:
    """log det of the blocks (A + sqrt(damping) I) x (G + sqrt(damping) I) = o log det A + a log det G, summed; scalar."""
    parts = []
    for rows, slopes in factors.values():
        a, o = rows.shape[1], slopes.shape[1]
        parts.append(o * _log_det(rows, damping**0.5) + a * _log_det(slopes, damping**0.5))
    return torch.stack(parts).sum()


def _log_det(rows: Tensor, shift: float) -> Tensor:
    """log det(rows' rows + shift I), from rows rows' where that is smaller: the eigenvalues of both are the same but for zeros.

    A layer of 64 channels has 576 inputs, but sees no more than 20 to 245 rows of a task of five images of Omniglot.
    """
    count, size = rows.shape
    gram = rows @ rows.mT if count < size else rows.mT @ rows
    log_det = torch.linalg.slogdet(gram + shift * torch.eye(len(gram), dtype=rows.dtype, device=rows.device)).logabsdet
    return log_det + max(size - count, 0) * math.log(shift)


def deviations(backbone: nn.Module, factors: dict[str, Factors], damping: float, noise: list[Tensor]) -> Params:
    """Gaussian deviations whose covariance is the inverse of the damped blocks, by parameter name.

    `noise`: standard normal numbers [o, a] for each layer.
    """
    found: Params = {}
    for (name, pair), z in zip(factors.items(), noise, strict=True):
        a, g = (torch.linalg.cholesky(value.double()) for value in _damped(pair, damping))
        left = torch.linalg.solve_triangular(g.mT, z.double(), upper=True)
        both = torch.linalg.solve_triangular(a, left, upper=False, left=False).to(z.dtype)
        layer, (weight, bias) = backbone.get_submodule(name), names_in(name)
        own = layer.get_parameter("weight")
        found[weight] = both[:, : own[0].numel()].reshape(own.shape)
        if getattr(layer, "bias", None) is not None:
            found[bias] = both[:, -1]
    return found


def _damped(pair: Factors, damping: float) -> tuple[Tensor, Tensor]:
    both = pair.inputs, pair.outputs
    a, g = (value + damping**0.5 * torch.eye(len(value), dtype=value.dtype, device=value.device) for value in both)
    return a, g


def _rows(layer: nn.Module, x: Tensor) -> Tensor:
    """What the layer multiplies its weight with: one row [a] per example and position."""
    if not isinstance(layer, SameConv2d):
        return x.flatten(0, -2)
    return F.unfold(layer.pad(x), layer.kernel, stride=layer.stride).transpose(1, 2).flatten(0, 1)


def _channels_last(layer: nn.Module, output: Tensor) -> Tensor:
    """[..., n, o] of a linear layer as it is; [..., n, o, H, W] of a convolution as [..., n, H, W, o]."""
    return output.movedim(-3, -1) if isinstance(layer, SameConv2d) else output


def _run(
    backbone: nn.Module, layers: list[str], params: Params, x: Tensor, taps: Params | None = None
) -> tuple[Tensor, Params, Params]:
    """The output of the network, and the inputs and outputs of its layers; `taps` are added to the layers' outputs."""
    inputs: Params = {}
    outputs: Params = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def run(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            inputs[name], outputs[name] = args[0], output
            return output if taps is None else output + taps[name]

        return run

    handles = [backbone.get_submodule(name).register_forward_hook(hook(name)) for name in layers]
    try:
        return functional_call(backbone, params, (x,)), inputs, outputs
    finally:
        for handle in handles:
            handle.remove()
