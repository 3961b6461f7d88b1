"""The two ways to the gradient of a vectorised meta-loss, both as functions of tensors that can be compiled.

Whole: loss and gradient of all inner steps as one function; the least overhead, right for few steps. In stages: a function
for the first inner step (all tasks still share their parameters, so nothing is computed per task that need not be), one for
a further step, which all further steps use, and one for the query loss; autograd connects them. Compiling then takes as long
for 50 inner steps as for two, and the graph of a step can be thrown away and made again (checkpointing), so that memory does
not grow with the number of steps.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params
from mamllit.engine.compiling import Backend, Compiler, Function
from mamllit.methods.base import InnerLoopMethod, Method

Memory = Literal["keep", "recompute"]


class MetaStep(NamedTuple):
    """Mean meta-loss over T episodes (scalar), mean logged scalars, and the gradient per parameter name."""

    loss: Tensor
    logs: dict[str, Tensor]
    gradient: Params


class Verbs(nn.Module):
    """Gives `functional_call` a forward, so that a method's verbs run on parameters handed in from outside."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, function: Callable, *args):
        return function(self.method, *args)


class Whole:
    """Loss and gradient of any method's `meta_loss`, as one function; `backend`: how it is compiled, None for not at all."""

    def __init__(self, method: Method, names: list[str], backend: Backend | None) -> None:
        self.verbs, self.names, self.logged = Verbs(method), names, []  # type: ignore[var-annotated]
        self.run: Function = self._run if backend is None else Compiler(backend)(self._run)

    def _run(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        params, episodes = dict(zip(self.names, tensors[:-4], strict=True)), _episodes(tensors[-4:])
        with torch.enable_grad():  # and autograd for the outermost derivative, of which no other is taken
            leaves = {name: value.detach().requires_grad_() for name, value in params.items()}

            def one(episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
                return functional_call(self.verbs, leaves, (type(self.verbs.method).meta_loss, episode))

            losses, logs = _of_each(len(tensors[-1]), one, (0,), episodes)
            loss = losses.mean()
            gradient = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        self.logged = list(logs)
        return loss.detach(), *(value.detach().mean() for value in logs.values()), *gradient

    def __call__(self, params: Params, episodes: Episode) -> MetaStep:
        loss, *rest = self.run(*params.values(), *_flat(episodes))
        logs = rest[: len(self.logged)]
        return MetaStep(loss, dict(zip(self.logged, logs, strict=True)), dict(zip(params, rest[len(logs) :], strict=True)))


class Staged:
    """Loss and gradient of an `InnerLoopMethod`, step by step.

    `backend`: how the functions are compiled, None for not at all.
    `memory`: "keep" every step's activations for the way back; "recompute" them there, one step at a time.
    """

    def __init__(self, method: InnerLoopMethod, names: list[str], backend: Backend | None, memory: Memory) -> None:
        self.method, self.verbs, self.names, self.memory = method, Verbs(method), names, memory
        self.state_names: list[str] = []
        self.logged: list[str] = []
        compiler = None if backend is None else Compiler(backend)

        def stage(function: Function) -> Function:
            return function if compiler is None else compiler(function)

        self.first, self.step = stage(self._step_from_shared), stage(self._step_from_own)
        self.outer, self.outer_shared = stage(self._outer_of_own), stage(self._outer_of_shared)

    # functions of tensors: P meta-parameters, S state, then support (2) or episode (4)

    def _step_from_shared(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self._step(None, *tensors)

    def _step_from_own(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self._step(0, *tensors)

    def _step(self, state_dim: int | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        params, state, support = self._split(tensors[:-2]), self._state(tensors[:-2]), Examples(*tensors[-2:])

        def one(state: Params, support: Examples) -> Params:
            return functional_call(self.verbs, params, (type(self.method).step, state, support))

        new = _of_each(len(tensors[-1]), one, (state_dim, 0), state, support)
        return tuple(new[name] for name in self.state_names)

    def _outer_of_own(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self._outer(0, *tensors)

    def _outer_of_shared(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self._outer(None, *tensors)

    def _outer(self, state_dim: int | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        params, state, episodes = self._split(tensors[:-4]), self._state(tensors[:-4]), _episodes(tensors[-4:])

        def one(state: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
            return functional_call(self.verbs, params, (type(self.method).outer_loss, state, episode))

        losses, logs = _of_each(len(tensors[-1]), one, (state_dim, 0), state, episodes)
        self.logged = list(logs)
        return losses.mean(), *(value.mean() for value in logs.values())

    def _split(self, tensors: tuple[Tensor, ...]) -> Params:
        return dict(zip(self.names, tensors[: len(self.names)], strict=True))

    def _state(self, tensors: tuple[Tensor, ...]) -> Params:
        return dict(zip(self.state_names, tensors[len(self.names) :], strict=True))

    def __call__(self, params: Params, episodes: Episode) -> MetaStep:
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
            start: Params = functional_call(self.verbs, leaves, (type(self.method).start,))
            self.state_names, state = list(start), tuple(start.values())
            weights = self.method.outer_weights()
            losses = []
            for number in range(self.method.inner_steps):
                step = self.step if number else self.first
                inputs = (*leaves.values(), *state, *episodes.support)
                state = _Recomputed.apply(step, *inputs) if self.memory == "recompute" else step(*inputs)
                if number + 1 == self.method.inner_steps or weights[number]:
                    one, *logs = self.outer(*leaves.values(), *state, *_flat(episodes))
                    losses.append(one * weights[number])
            if not losses:
                one, *logs = self.outer_shared(*leaves.values(), *state, *_flat(episodes))
                losses.append(one)
            loss = torch.stack(losses).sum() if losses[1:] else losses[0]
            gradient = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return MetaStep(
            loss.detach(),
            {name: value.detach() for name, value in zip(self.logged, logs, strict=True)},
            dict(zip(leaves, gradient, strict=True)),
        )


class _Recomputed(torch.autograd.Function):
    """A function of tensors that keeps its inputs for the way back, and runs again there, with the same random numbers.

    (torch.utils.checkpoint works by hooks that `torch.func` does not allow.)
    """

    @staticmethod
    def forward(ctx: Any, function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.function, ctx.random = function, torch.get_rng_state()
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        inputs = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad(), torch.random.fork_rng():
            torch.set_rng_state(ctx.random)
            outputs = ctx.function(*inputs)
        wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
        # a state may carry constants, such as a count of steps
        pairs = [(out, grad) for out, grad in zip(outputs, outer, strict=True) if out.requires_grad]
        own, theirs = zip(*pairs, strict=True) if pairs else ((), ())
        found = iter(torch.autograd.grad(own, wanted, theirs, allow_unused=True) if own else [None] * len(wanted))
        return None, *(next(found) if need else None for need in needed)


def _of_each(tasks: int, one: Callable[..., Any], in_dims: tuple[int | None, ...], *values: Any) -> Any:
    """`vmap(one, in_dims)(*values)` over `tasks` tasks; a single one runs as it is, which takes fewer calls."""
    if tasks > 1:
        return vmap(one, in_dims=in_dims, randomness="different")(*values)
    single = [value if dim is None else _mapped(lambda x: x[0], value) for value, dim in zip(values, in_dims, strict=True)]
    return _mapped(lambda x: x[None], one(*single))


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`function` of every tensor in dicts and tuples."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: _mapped(function, part) for name, part in value.items()}
    parts = [_mapped(function, part) for part in value]
    return value._make(parts) if hasattr(value, "_make") else tuple(parts)


def _flat(episodes: Episode) -> tuple[Tensor, ...]:
    return (*episodes.support, *episodes.query)


def _episodes(tensors: tuple[Tensor, ...]) -> Episode:
    return Episode(Examples(*tensors[:2]), Examples(*tensors[2:]))
