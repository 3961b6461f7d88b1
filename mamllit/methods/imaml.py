"""iMAML: the meta-gradient from the point where the inner loop ends, whatever path led there.

A. Rajeswaran, C. Finn, S. Kakade, S. Levine: Meta-Learning with Implicit Gradients, NeurIPS 2019, arXiv 1909.04630. The
inner loop minimises the support loss plus lambda / 2 times the squared distance to theta. At its minimum phi the
meta-gradient is g = (I + H / lambda)^-1 grad L_q(phi), H the Hessian of the support loss at phi; conjugate gradients find g
from products with H, and no graph through the inner steps is kept, however many there are.

g is not the derivative of the computation that led to phi. The meta-loss is therefore L_q(phi), with phi held fixed, plus a
term whose value is zero and whose gradient with respect to theta is g: <theta, g> less its own value. Meta-parameters that
the inner loop does not adapt (batch norm's) also influence phi; the same theorem gives that part of their gradient, - 1 /
lambda d <grad L_s(phi), g>. So the engine can treat iMAML like any other method.

Departures: all inner steps are taken on the regularised loss, as in the paper (the authors' code regularises only the last
one); a test adapts with lambda as well (theirs: 0); frozen parameters as in `mamllit.methods.maml`.

    >>> import torch
    >>> from mamllit import Examples, IMAML, MLP, Regression
    >>> method = IMAML(MLP(1, [8], 1), Regression(), inner_lr=0.01, inner_steps=1, reduction="mean", proximity=2.0)
    >>> support = Examples(torch.rand(10, 1), torch.rand(10, 1))
    >>> method.predict(method.adapt(support), torch.rand(3, 1)).shape
    torch.Size([3, 1])
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from mamllit.core.adapted import adapted_parameters
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params
from mamllit.methods.inner_loop_method import InnerLoopMethod
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.objectives import Objective, Reduction, task_loss


class IMAML(InnerLoopMethod):
    """MAML with a proximal inner loop and the implicit meta-gradient.

    Args:
        backbone, objective, inner_lr, inner_steps, reduction, frozen: as in `MAML`. The gradient is exact where the inner loop
            has converged.
        proximity: lambda, the strength of the pull towards theta, > 0.
        cg_steps: steps of conjugate gradients, >= 1.
        damping: added to the identity in I + H / lambda, for a support loss that curves downwards (the authors: 1).

    Raises:
        ValueError: as in `MAML`; for a number out of bounds.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        inner_lr: float,
        inner_steps: int,
        reduction: Reduction,
        proximity: float,
        cg_steps: int = 5,
        damping: float = 0.0,
        frozen: Sequence[str] = ("*.beta", "*.gamma"),
    ) -> None:
        super().__init__()
        check_inner_loop(backbone, inner_lr, inner_steps, reduction)
        if proximity <= 0:
            raise ValueError(f"proximity is {proximity}; it must be > 0")
        if cg_steps < 1:
            raise ValueError(f"cg_steps is {cg_steps}; it must be >= 1")
        if damping < 0:
            raise ValueError(f"damping is {damping}; it must be >= 0")
        self.backbone, self.objective = backbone, objective
        self.inner_lr, self.inner_steps, self.reduction = inner_lr, inner_steps, reduction
        self.proximity, self.cg_steps, self.damping = proximity, cg_steps, damping
        self.adapted = adapted_parameters(backbone, frozen)

    def start(self, ways: int) -> Params:
        return {name: value.detach() for name, value in self.backbone.named_parameters() if name in self.adapted}

    def step(self, state: Params, support: Examples) -> Params:
        theta = self.start(support.ways)
        gradient = grad(lambda params: self._loss({**self._frozen(True), **params}, support, support))(state)
        pull = {name: self.proximity * (value - theta[name]) for name, value in state.items()}
        return {name: value - self.inner_lr * (gradient[name] + pull[name]) for name, value in state.items()}

    def predict(self, state: Params, x: Tensor) -> Tensor:
        return functional_call(self.backbone, state, (x,))

    def outer_loss(self, state: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        support, query = episode
        phi = {name: value.detach() for name, value in state.items()}
        own, frozen = dict(self.backbone.named_parameters()), self._frozen(False)
        g = {name: value.detach() for name, value in self.implicit_gradient(phi, episode).items()}
        zero = inner({name: own[name] for name in self.adapted}, g)
        if frozen:
            support_gradient = grad(lambda params: self._loss({**frozen, **params}, support, support))(phi)
            zero = zero - inner(support_gradient, g) / self.proximity
        loss = self._loss({**frozen, **phi}, query, support)
        metric = self.objective.metric(self.predict(phi, query.x).detach(), query.y)
        return loss + zero - zero.detach(), {self.objective.metric_name: metric}

    def implicit_gradient(self, phi: Params, episode: Episode) -> Params:
        """g = ((1 + damping) I + H / lambda)^-1 grad L_q(phi), by `cg_steps` of conjugate gradients."""
        frozen = self._frozen(True)
        support_gradient = grad(lambda params: self._loss({**frozen, **params}, episode.support, episode.support))

        def product(vector: Params) -> Params:
            curved = grad(lambda params: inner(support_gradient(params), vector))(phi)
            return {name: (1 + self.damping) * v + curved[name] / self.proximity for name, v in vector.items()}

        query_gradient = grad(lambda params: self._loss({**frozen, **params}, episode.query, episode.support))(phi)
        return conjugate_gradients(product, query_gradient, self.cg_steps)

    def _frozen(self, constant: bool) -> Params:
        parameters = [(name, value) for name, value in self.backbone.named_parameters() if name not in self.adapted]
        return {name: value.detach() if constant else value for name, value in parameters}

    def _loss(self, params: Params, examples: Examples, support: Examples) -> Tensor:
        return task_loss(self.objective, self.predict(params, examples.x), examples, support, self.reduction)


def inner(a: Params, b: Params) -> Tensor:
    """The inner product of two dicts of tensors with the same names; scalar."""
    return torch.stack([(a[name] * b[name]).sum() for name in b]).sum()


def conjugate_gradients(product: Callable[[Params], Params], right: Params, steps: int) -> Params:
    """`steps` steps towards x with product(x) = right, from zero; after the exact solution further steps change nothing.

    `product` is the multiplication by a symmetric positive definite matrix. No step depends on a value, so that tasks can
    be vectorised.
    """
    x = {name: torch.zeros_like(value) for name, value in right.items()}
    residual, direction, length = right, right, inner(right, right)
    tiny = torch.finfo(length.dtype).tiny  # instead of 0 / 0 once the residual is zero
    for _ in range(steps):
        image = product(direction)
        pace = length / (inner(direction, image) + tiny)
        x = {name: x[name] + pace * direction[name] for name in x}
        residual = {name: residual[name] - pace * image[name] for name in x}
        after = inner(residual, residual)
        direction = {name: residual[name] + after / (length + tiny) * direction[name] for name in x}
        length = after
    return x
