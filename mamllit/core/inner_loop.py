"""The inner loop: gradient descent on a support loss, as pure functions over a dict of parameters.

Finn, Abbeel & Levine 2017, section 2.2. Everything here is written for ONE task and built on `torch.func`, so that it can
be differentiated (exact second order) and vectorised over tasks from outside.
"""

from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.func import grad

Params = dict[str, Tensor]
StepSize = float | Tensor | Mapping[str, float | Tensor]


def check_no_running_buffers(module: nn.Module) -> None:
    """Raise `ValueError` where a forward pass of `module` would change a buffer.

    A buffer that a forward pass overwrites (batch norm's running statistics) has no meaning per task, and cannot be
    written under `vmap`. Constant buffers are fine.
    """
    running = [
        name
        for name, _ in module.named_buffers()
        if name.rsplit(".", 1)[-1].startswith("running_") or name.endswith("num_batches_tracked")
    ]
    if running:
        raise ValueError(
            f"the module has running buffers, which an inner loop would overwrite: {', '.join(running)}. "
            "Use mamllit.backbones.BatchStatNorm, or build the norm with track_running_stats=False (which mamllit computes by "
            "operators of its own: see docs/networks.md)."
        )


def select_adapted(names: Collection[str], frozen: Collection[str] = ()) -> list[str]:
    """The parameter names that the inner loop changes: all of `names` but those matching a pattern in `frozen`.

    Patterns are shell patterns (`*.beta`). Raises `ValueError` if nothing is left to adapt.
    """
    adapted = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in frozen)]
    if not adapted:
        raise ValueError(
            f"no parameter is left to adapt: the patterns {sorted(frozen)} cover all of {sorted(names)}. "
            "Freeze fewer parameters in the inner loop."
        )
    return adapted


def adapted_parameters(module: nn.Module, frozen: Collection[str] = ()) -> list[str]:
    """Names of the parameters that an inner loop changes: frozen neither by a pattern nor by `requires_grad_(False)`.

    Raises `ValueError` if nothing is left to adapt.
    """
    trained = [name for name, value in module.named_parameters() if value.requires_grad]
    if not trained:
        raise ValueError(
            f"no parameter is left to adapt: {type(module).__name__} has none that requires a gradient. Freeze fewer layers "
            "(`requires_grad_(False)`) before you give the network to a method."
        )
    return select_adapted(trained, frozen)


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
        raise ValueError(f"adapted names {unknown}, which are no parameters; the parameters are {list(params)}")
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
