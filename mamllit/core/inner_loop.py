"""The inner loop: gradient descent on a support loss, as pure functions over a dict of parameters.

Finn, Abbeel & Levine 2017, section 2.2. Everything here is written for ONE task and built on `torch.func`, so that it can
be differentiated (exact second order) and vectorised over tasks from outside.
"""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor
from torch.func import grad

Params = dict[str, Tensor]
StepSize = float | Tensor | Mapping[str, float | Tensor]


def gradient_step(
    loss: Callable[[Params], Tensor], params: Params, adapted: Collection[str], step_size: StepSize, first_order: bool
) -> Params:
    """One step phi <- phi - alpha * grad loss(phi) on the `adapted` parameters; the others are passed through.

    Args:
        loss: the support loss of one task as a function of `params`; scalar.
        params: where the step begins.
        adapted: names that change.
        step_size: alpha, one number, one tensor, or one of either per adapted parameter name.
        first_order: treat the inner gradient as a constant (first-order MAML, section 5.2).

    Raises:
        ValueError: for an unknown adapted name, or a step size missing for one.
    """
    if unknown := [name for name in adapted if name not in params]:
        raise ValueError(f"adapted names {unknown}, which are not parameters; the parameters are {list(params)}")
    if isinstance(step_size, Mapping) and (missing := [name for name in adapted if name not in step_size]):
        raise ValueError(f"step_size has no entry for the adapted parameters {missing}; it has {list(step_size)}")
    if first_order:  # differentiate at a constant point: the outer gradient then never enters the inner backward pass
        point = {name: value.detach() for name, value in params.items()}
    else:
        point = params
    rest = {name: value for name, value in point.items() if name not in adapted}
    gradient = grad(lambda fast: loss({**rest, **fast}))({name: point[name] for name in adapted})
    new = dict(params)
    for name in adapted:
        alpha = step_size[name] if isinstance(step_size, Mapping) else step_size
        if isinstance(alpha, Tensor):
            new[name] = params[name] - alpha * gradient[name]
        else:  # in one pass; not `add` with a negative alpha, which the compiler forgets after a product (pytorch issue 167313)
            new[name] = torch.sub(params[name], gradient[name], alpha=alpha)
    return new
