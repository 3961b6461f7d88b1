"""Whether an inner loop can converge: the sharpness of its loss, in units of its own step.

An inner step phi <- G(phi) multiplies small differences by the Jacobian G' of G. For gradient descent that is I - inner_lr H,
with H the Hessian of the support loss: along an eigenvector of H whose eigenvalue exceeds 2 / inner_lr, every step goes
further past the minimum than the last. The largest eigenvalue of I - G' says this of any inner loop, one with learned step
sizes or a proximal term too; 2 is its bound.
"""

import copy
from dataclasses import replace

import torch
from torch import Tensor

from mamllit.core.episode import Examples
from mamllit.core.inner_loop import Params
from mamllit.methods import InnerLoopMethod

APART = 1e-6  # of two points, relative to the length of the state, in double precision


def sharpness(method: InnerLoopMethod, support: Examples, iterations: int = 20) -> float:
    """The largest eigenvalue of I - G', G the first inner step of `method` on the `support` of one task, by power iteration.

    Differences of G in double precision take the place of derivatives, so that first-order steps and operators without a
    derivative are measured as well.

    >>> from mamllit import MAML, MLP, Examples, Regression
    >>> method = MAML(MLP(1, [8], 1), Regression(), inner_lr=0.01, inner_steps=1, reduction="mean")
    >>> 0 < sharpness(method, Examples(torch.rand(10, 1), torch.rand(10, 1))) < 2
    True
    """
    method = copy.deepcopy(method).double().eval()
    support = replace(support, x=support.x.double(), y=support.y.double() if support.y.is_floating_point() else support.y)
    with torch.no_grad():
        start = {name: value.detach() for name, value in method.start(support.ways).items()}
        first, size = method.step(start, support), _length(start).clamp_min(1)
        generator = torch.Generator().manual_seed(0)
        direction = {n: torch.randn(v.shape, generator=generator, dtype=v.dtype).to(v.device) for n, v in start.items()}
        found = torch.zeros(())
        for _ in range(iterations):
            apart = APART * size / _length(direction)
            there = {name: value + apart * direction[name] for name, value in start.items()}
            moved = method.step(there, support)
            image = {name: direction[name] - (moved[name] - first[name]) / apart for name in start}
            found = _product(direction, image) / _product(direction, direction)
            if not _length(image) > 0:
                break
            direction = image
    return float(found)


def _product(a: Params, b: Params) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def _length(a: Params) -> Tensor:
    return _product(a, a).sqrt()
