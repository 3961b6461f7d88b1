"""The two ways to the gradient of a vectorised meta-loss, both as functions of tensors that can be compiled.

Whole: loss and gradient of all inner steps as one function; the least overhead, right for few steps. In stages: a function
for the first inner step (all tasks still share their parameters, so nothing is computed per task that need not be), one for
a further step, which all further steps use, and one for the query loss; autograd connects them. Compiling then takes as long
for 50 inner steps as for two, and the graph of a step can be thrown away and made again (checkpointing), so that memory does
not grow with the number of steps.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params
from mamllit.core.tree import Structure, count, flatten, item, tree_map, unflatten, vmap
from mamllit.engine.compiling import Backend, Compiler, Function
from mamllit.engine.known import Operators, running
from mamllit.engine.recompute import Recomputed
from mamllit.methods.base import Method
from mamllit.methods.inner_loop_method import InnerLoopMethod

Memory = Literal["keep", "recompute"]


class MetaStep(NamedTuple):
    """Mean meta-loss over T episodes (scalar), mean logged scalars, and the gradient per parameter name."""

    loss: Tensor
    logs: dict[str, Tensor]
    gradient: Params


class Verbs(nn.Module):
    """Gives `functional_call` a forward, so that a method's verbs run on parameters handed in from outside.

    `operators`: with which operators of PyTorch, see `mamllit.engine.known.running`.
    """

    def __init__(self, method: Method, operators: Operators) -> None:
        super().__init__()
        self.method, self.operators = method, operators

    def forward(self, function: Callable, *args: Any) -> Any:
        if self.operators == "torch":
            return function(self.method, *args)
        with running(self.operators):
            return function(self.method, *args)


class Whole:
    """Loss and gradient of any method's `meta_loss`, as one function.

    `names` are those of the meta-parameters, `structure` is that of the episodes, `backend` says how the function is compiled,
    None for not compiled; `operators`: see `Verbs`.
    """

    def __init__(
        self,
        method: Method,
        names: list[str],
        structure: Structure,
        backend: Backend | None,
        operators: Operators = "torch",
    ) -> None:
        self.verbs, self.names, self.structure = Verbs(method, operators), names, structure
        self.logged: list[str] = []
        self.run: Function = self._run if backend is None else Compiler(backend)(self._run)

    def _run(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        params = dict(zip(self.names, tensors, strict=False))
        episodes: Episode = unflatten(self.structure, tensors[len(params) :])
        with torch.enable_grad():  # and autograd for the outermost derivative, of which no other is taken
            leaves = {name: value.detach().requires_grad_() for name, value in params.items()}

            def one(episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
                return functional_call(self.verbs, leaves, (type(self.verbs.method).meta_loss, episode))

            losses, logs = _of_each(count(episodes), one, (0,), episodes)
            loss = losses.mean()
            gradient = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        self.logged = list(logs)
        return loss.detach(), *(value.detach().mean() for value in logs.values()), *gradient

    def __call__(self, params: Params, episodes: Episode) -> MetaStep:
        loss, *rest = self.run(*params.values(), *flatten(episodes)[0])
        logs = rest[: len(self.logged)]
        return MetaStep(loss, dict(zip(self.logged, logs, strict=True)), dict(zip(params, rest[len(logs) :], strict=True)))


class Staged:
    """Loss and gradient of an `InnerLoopMethod`, step by step.

    `memory`: "keep" every step's activations for the backward pass; "recompute" them there, one step at a time. The others: see
    `Whole`.
    """

    def __init__(
        self,
        method: InnerLoopMethod,
        names: list[str],
        structure: Structure,
        backend: Backend | None,
        memory: Memory,
        operators: Operators = "torch",
    ) -> None:
        self.method, self.verbs, self.names, self.memory = method, Verbs(method, operators), names, memory
        self.episodes, self.support = structure, structure.parts[0]
        self.state = Structure(dict, (), ())
        self.logged: list[str] = []
        compiler = None if backend is None else Compiler(backend)

        def stage(function: Function) -> Function:
            return function if compiler is None else compiler(function)

        self.first, self.step = stage(self._step_from_shared), stage(self._step_from_own)
        self.outer, self.outer_shared = stage(self._outer_of_own), stage(self._outer_of_shared)

    # functions of tensors: meta-parameters, then the state's, then those of the support or of the episodes

    def _step_from_shared(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self._step(None, *tensors)

    def _step_from_own(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self._step(0, *tensors)

    def _step(self, state_dim: int | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        params, state, support = self._trees(self.support, tensors)

        def one(state: Params, support: Examples) -> Params:
            new = functional_call(self.verbs, params, (type(self.method).step, state, support))
            return {name: new[name] for name in state}  # in the order of the first state

        new, _ = flatten(_of_each(count(support), one, (state_dim, 0), state, support))
        return tuple(new)

    def _outer_of_own(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self._outer(0, *tensors)

    def _outer_of_shared(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self._outer(None, *tensors)

    def _outer(self, state_dim: int | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        params, state, episodes = self._trees(self.episodes, tensors)

        def one(state: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
            return functional_call(self.verbs, params, (type(self.method).outer_loss, state, episode))

        losses, logs = _of_each(count(episodes), one, (state_dim, 0), state, episodes)
        self.logged = list(logs)
        return losses.mean(), *(value.mean() for value in logs.values())

    def _trees(self, last: Structure, tensors: tuple[Tensor, ...]) -> tuple[Params, Any, Any]:
        begin, end = len(self.names), len(self.names) + self.state.tensors
        params = dict(zip(self.names, tensors[:begin], strict=True))
        return params, unflatten(self.state, tensors[begin:end]), unflatten(last, tensors[end:])

    def __call__(self, params: Params, episodes: Episode) -> MetaStep:
        support, whole = flatten(episodes.support)[0], flatten(episodes)[0]
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
            state: Sequence[Tensor]
            state, self.state = flatten(functional_call(self.verbs, leaves, (type(self.method).start, episodes.ways)))
            weights = self.method.outer_weights()
            losses = []
            for number in range(self.method.inner_steps):
                step = self.step if number else self.first
                inputs = (*leaves.values(), *state, *support)
                state = Recomputed.apply(step, *inputs) if self.memory == "recompute" else step(*inputs)
                if number + 1 == self.method.inner_steps or weights[number]:
                    one, *logs = self.outer(*leaves.values(), *state, *whole)
                    losses.append(one * weights[number])
            if not losses:
                one, *logs = self.outer_shared(*leaves.values(), *state, *whole)
                losses.append(one)
            loss = torch.stack(losses).sum() if losses[1:] else losses[0]
            gradient = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return MetaStep(
            loss.detach(),
            {name: value.detach() for name, value in zip(self.logged, logs, strict=True)},
            dict(zip(leaves, gradient, strict=True)),
        )


def _of_each(tasks: int, one: Callable[..., Any], in_dims: tuple[int | None, ...], *trees: Any) -> Any:
    """`vmap(one, in_dims)(*trees)` over `tasks` tasks; a single one runs as it is, which takes fewer calls."""
    if tasks > 1:
        return vmap(one, in_dims)(*trees)
    single = [tree if dim is None else item(tree, 0) for tree, dim in zip(trees, in_dims, strict=True)]
    return tree_map(lambda tensor: tensor[None], one(*single))
