"""The outer step on policies: its loss, its gradient through the adaptation, and the products that a trust region needs.

For any method and any number of inner steps the outputs of the adapted policies on the query are functions of the
meta-parameters. The first derivative of the divergence KL(old || new) in these outputs vanishes where the step begins, so that
its second derivative in the meta-parameters is exactly the mean of J' F J, with J the Jacobian of the outputs and F the
Fisher information of one output: a product takes one forward and one backward pass, and no third derivative.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mamllit.core.episode import Examples
from mamllit.core.tree import count, vmap
from mamllit.engine.acting import Practice, StepByStep, chunks, thinned
from mamllit.rl.objective import PolicyGradient, mean_over_steps, unpack

Reduce = Callable[[Tensor], Tensor]  # the mean over all processes


class PolicyStep:
    """One outer step on what a meta-batch has gathered; a `mamllit.rl.trust_region.Problem`.

    Args:
        method: what is learned.
        practice: see `mamllit.engine.acting.practise`.
        parameters: the meta-parameters, in the optimiser's order.
        curvature: the share of the steps that products are made from, > 0 and at most 1; loss and divergence take all.
        offset: which steps these are (with dice, whose sums need whole trajectories, always the first trajectories).
        reduce: the mean over processes, of products, losses and divergences.
    """

    def __init__(
        self,
        method: StepByStep,
        practice: Practice,
        parameters: Sequence[Tensor],
        curvature: float = 1.0,
        offset: int = 0,
        reduce: Reduce = lambda value: value,
    ) -> None:
        self.method, self.practice, self.parameters, self.reduce = method, practice, list(parameters), reduce
        self.curvature, self.offset = curvature, offset
        self.objective: PolicyGradient = method.objective
        self._loss: Tensor | None = None
        self._graphs: list[tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor]] | None = None

    def outputs(self, supports: Sequence[Examples], query: Examples) -> Tensor:
        """Of ONE task's policy, adapted on `supports` in turn, on the query's observations; [K, H, d]."""
        state = self.method.start(1)
        for support in supports:
            state = self.method.step(state, support)
        return self.method.predict(state, query.x)

    def gradient(self) -> tuple[Tensor, list[Tensor]]:
        """Mean surrogate loss over the tasks of this process, and its gradient in the parameters."""

        def of_task(supports: list[Examples], query: Examples, before: list[Tensor]) -> Tensor:
            return self.objective.surrogate(self.outputs(supports, query), query.y)

        self._loss, gradient = self._mean_gradient(of_task)
        return self._loss, gradient

    def proximal(self, clip: float, inner_kl: float) -> tuple[Tensor, list[Tensor]]:
        """ProMP's loss and gradient, means over tasks and processes: the clipped surrogate and `inner_kl` times the divergences
        of the policies that acted before each inner step."""

        def of_task(supports: list[Examples], query: Examples, before: list[Tensor]) -> Tensor:
            state, moved = self.method.start(1), query.x.new_zeros(())
            for support, old in zip(supports, before, strict=True):
                kl = self.objective.distribution.kl(old, self.method.predict(state, support.x))
                moved = moved + mean_over_steps(kl, unpack(support.y).valid)
                state = self.method.step(state, support)
            return self.objective.surrogate(self.method.predict(state, query.x), query.y, clip) + inner_kl * moved

        loss, gradient = self._mean_gradient(of_task)
        return self.reduce(loss), [self.reduce(part) for part in gradient]

    def _mean_gradient(self, of_task: Callable[..., Tensor]) -> tuple[Tensor, list[Tensor]]:
        tasks, practice = count(self.practice.query), self.practice
        total, gradient = practice.outputs.new_zeros(()), [torch.zeros_like(value) for value in self.parameters]
        for query, supports, before in chunks(practice.query, practice.supports, practice.before):
            with torch.enable_grad():
                loss = vmap(of_task)(supports, query, before).sum() / tasks
                parts = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
            total += loss.detach()
            for value, part in zip(gradient, parts, strict=True):
                value += part
        return total, gradient

    def begin(self) -> Tensor:
        """The mean loss of all processes where the step begins."""
        return self.reduce(self.gradient()[0] if self._loss is None else self._loss)

    @torch.no_grad()
    def judge(self) -> tuple[Tensor, Tensor]:
        """Surrogate loss and KL(old || new) at the parameters as they are now: means over steps, tasks and processes."""

        def of_task(supports: list[Examples], query: Examples, old: Tensor) -> Tensor:
            new = self.outputs(supports, query)
            kl = mean_over_steps(self.objective.distribution.kl(old, new), unpack(query.y).valid)
            return torch.stack([self.objective.surrogate(new, query.y), kl])

        practice = self.practice
        parts = chunks(practice.query, practice.supports, practice.outputs)
        sums = torch.cat([vmap(of_task)(supports, query, old) for query, supports, old in parts])
        loss, kl = self.reduce(sums.mean(0))
        return loss, kl

    def product(self, vector: Tensor) -> Tensor:
        """The second derivative of the divergence where the step began, times a vector [P]; to be called before it is taken."""
        if self._graphs is None:
            with torch.enable_grad():
                self._graphs = self._record()
        along = vector.split([value.numel() for value in self.parameters])
        tangents = [part.reshape(value.shape) for part, value in zip(along, self.parameters, strict=True)]
        total = torch.zeros_like(vector)
        for outputs, dual, back, weight in self._graphs:
            (moved,) = torch.autograd.grad(back, dual, tangents, retain_graph=True, materialize_grads=True)
            force = self.objective.distribution.metric(outputs.detach(), moved) * weight[..., None]
            found = torch.autograd.grad(outputs, self.parameters, force, retain_graph=True, materialize_grads=True)
            total += torch.cat([part.reshape(-1) for part in found])
        return self.reduce(total)

    def _record(self) -> list[tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor]]:
        """Outputs, and J'u as a function of u = `dual`, which is linear, so that its own transpose gives J v."""

        def thin(part: Examples) -> Examples:
            return thinned(part, self.curvature, self.objective.inner == "dice", self.offset)

        query, supports = thin(self.practice.query), [thin(part) for part in self.practice.supports]
        tasks, graphs = count(query), []
        for part, own in chunks(query, supports):
            outputs = vmap(self.outputs)(own, part)
            dual = torch.zeros_like(outputs, requires_grad=True)
            back = torch.autograd.grad(outputs, self.parameters, dual, create_graph=True, materialize_grads=True)
            valid = unpack(part.y).valid
            weight = valid / valid.sum((1, 2), keepdim=True).clamp(min=1) / tasks
            graphs.append((outputs, dual, back, weight))
        return graphs

    def release(self) -> None:
        """Forget the graphs of the products."""
        self._graphs = None
