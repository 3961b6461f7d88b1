"""Finds the modules that make `vmap` go wrong, so that the warning can name them: those that also fail by themselves."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from mamllit.core.episode import Episode
from mamllit.core.inner_loop import Params
from mamllit.core.tree import item
from mamllit.engine.known import TOLERANCE, relative, running, unknown
from mamllit.methods.base import Method


def blamed(tried: Method, small: Episode) -> str:
    """Names of the modules that fail by themselves; where none does, of all that are not known."""
    candidates = unknown(tried)
    try:
        inputs = _inputs(tried, candidates, small)
        failing: list[str] = []
        for name in sorted(inputs, key=lambda name: -name.count(".")):
            inside = any(other == name or other.startswith(f"{name}.") for other in failing)
            if not inside and not _right_alone(candidates[name], inputs[name]):
                failing.append(name)
    except Exception:  # only the wording of the message depends on this
        failing = []
    if not failing:
        leaves = [name for name in candidates if not any(other.startswith(f"{name}.") for other in candidates if name)]
        failing = [name for name in leaves if name] or list(candidates)
    return ", ".join(named(tried, name) for name in sorted(failing))


def named(tried: nn.Module, name: str) -> str:
    kind = type(tried.get_submodule(name)).__name__
    return f"{name} (a {kind})" if name else f"the {kind}"


def _inputs(tried: Method, modules: dict[str, nn.Module], small: Episode) -> dict[str, tuple[Any, ...]]:
    """What each module is called with in a prediction for one task."""
    found: dict[str, tuple[Any, ...]] = {}

    def hook(name: str) -> Callable[..., Any]:
        return lambda module, args: found.setdefault(name, tuple(args))

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items() if name]
    try:
        with torch.no_grad(), running("math"):
            task = item(small, 0)
            tried.predict(tried.adapt(task.support, 0), task.query.x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _right_alone(module: nn.Module, args: tuple[Any, ...]) -> bool:
    """Whether a derivative of a derivative of this one module is the same for two tasks under `vmap` and one by one."""
    params = {name: value.detach() for name, value in module.named_parameters()}
    first, *rest = args
    moving = isinstance(first, Tensor) and first.is_floating_point()

    def output(p: Params, x: Any) -> Tensor:
        value: Any = functional_call(module, p, (x, *rest))
        while not isinstance(value, Tensor):
            value = value[0]
        return value

    def slope(p: Params, x: Any, scale: Tensor) -> Tensor:
        def loss(p: Params, x: Any) -> Tensor:
            return (scale * output(p, x)).sin().sum()

        gradient = grad(loss)(p, x) if p else {}
        own = [value.square().sum() for value in gradient.values()]
        own += [grad(loss, argnums=1)(p, x).square().sum()] if moving else []
        return torch.stack(own).sum()

    def both(vectorised: bool) -> Tensor:
        scales = torch.tensor([0.5, 0.8], dtype=torch.get_default_dtype())
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        x = first.clone().requires_grad_() if moving else first
        own = {name: torch.stack([value, 1.1 * value]) for name, value in leaves.items()}
        if vectorised:
            slopes = vmap(slope, in_dims=(0, None, 0), randomness="different")(own, x, scales)
        else:
            each = [slope({name: value[i] for name, value in own.items()}, x, scales[i]) for i in range(2)]
            slopes = torch.stack(each)
        wanted = [*leaves.values(), *([x] if moving else [])]
        found = torch.autograd.grad(slopes.sum(), wanted, allow_unused=True, materialize_grads=True)
        return torch.cat([value.flatten() for value in found])

    module.eval()  # without dropout
    try:
        with torch.enable_grad(), running("math"):
            return relative(both(True), both(False)) <= TOLERANCE
    except Exception:
        return False
    finally:
        module.train()
