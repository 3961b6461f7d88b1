"""LLAMA: MAML as hierarchical Bayes, with a Laplace approximation of each task's marginal likelihood.

E. Grant, C. Finn, S. Levine, T. Darrell, T. Griffiths: Recasting Gradient-Based Meta-Learning as Hierarchical Bayes, ICLR 2018,
arXiv 1801.08930 (which calls it L-MAML). The adapted parameters are a point estimate of the task's own; the meta-loss is the
query's loss at it plus eta log det H, where H is the curvature there: the Fisher of the query examples in Kronecker factors
(`mamllit.methods.parts.kfac`). The term is differentiated too, through activations, derivatives and the inner loop. At test,
models can be sampled from N(adapted parameters, inverse of H), H then of the support examples.

Departures: the damping, which the paper does not state and H cannot do without (a softmax layer's G is singular), is a
setting; it plays the role of the prior's precision. H covers only what the inner loop adapts, so not batch norm.

    >>> import torch
    >>> from mamllit import Examples, LLAMA, MLP, Regression
    >>> method = LLAMA(MLP(1, [8], 1), Regression(), inner_lr=0.01, inner_steps=1, reduction="mean", damping=0.1)
    >>> support = Examples(torch.rand(10, 1), torch.rand(10, 1))
    >>> method.predict(method.adapt(support), torch.rand(3, 1)).shape
    torch.Size([3, 1])
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.func import functional_call, vmap

from mamllit.core.adapted import adapted_parameters
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params, gradient_step
from mamllit.core.noise import episode_key, normal
from mamllit.methods.inner_loop_method import InnerLoopMethod
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.methods.parts.kfac import Factors, check_layers, deviations, fisher, log_det
from mamllit.methods.parts.layers import names_in, weight_layers
from mamllit.objectives import Objective, Reduction, task_loss

SAMPLED = "sampled."  # begins the names of sampled parameters in a state


class LLAMA(InnerLoopMethod):
    """MAML with a penalty on the curvature at the adapted parameters.

    Args:
        backbone, objective, inner_lr, inner_steps, reduction, first_order, frozen: as in `MAML`.
        damping: lambda; sqrt(lambda) is added to the diagonal of both factors of a layer.
        log_det_weight: eta (the paper: 1e-6); with 0 it is MAML.
        labels: of the Fisher: "expected" takes the mean over all labels that the model may give, with a backward pass for each
            class; "sampled" one random combination of them per example.
        models: how many are sampled at test, whose predictions are averaged; 0 predicts with the adapted parameters alone.

    Raises:
        ValueError: as in `MAML`; for a number out of bounds, unknown `labels`, or a layer without Kronecker factors.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        inner_lr: float,
        inner_steps: int,
        reduction: Reduction,
        damping: float,
        first_order: bool = False,
        frozen: Sequence[str] = ("*.beta", "*.gamma"),
        log_det_weight: float = 1e-6,
        labels: Literal["expected", "sampled"] = "expected",
        models: int = 0,
    ) -> None:
        super().__init__()
        check_inner_loop(backbone, inner_lr, inner_steps, reduction)
        if damping <= 0:
            raise ValueError(f"damping is {damping}; it must be > 0, since a low-rank factor has no log det")
        if log_det_weight < 0:
            raise ValueError(f"log_det_weight is {log_det_weight}; it must be >= 0, since below 0 it rewards sharp curvature")
        if labels not in ("expected", "sampled"):
            raise ValueError(f"labels is {labels!r}; it must be 'expected' or 'sampled'")
        if models < 0:
            raise ValueError(f"models is {models}; it must be >= 0")
        self.backbone, self.objective = backbone, objective
        self.inner_lr, self.inner_steps = inner_lr, inner_steps
        self.reduction, self.first_order = reduction, first_order
        self.damping, self.log_det_weight, self.labels, self.models = damping, log_det_weight, labels, models
        self.adapted = adapted_parameters(backbone, frozen)
        self.layers = [layer for layer in weight_layers(backbone) if names_in(layer)[0] in self.adapted]
        check_layers(backbone, self.layers)

    def start(self, ways: int) -> Params:
        return {name: value for name, value in self.backbone.named_parameters() if name in self.adapted}

    def step(self, state: Params, support: Examples) -> Params:
        def support_loss(params: Params) -> Tensor:
            return self._loss(self._output(params, support.x), support, support)

        return gradient_step(support_loss, state, self.adapted, self.inner_lr, self.first_order)

    def trajectory(self, support: Examples, steps: int) -> list[Params]:
        """As in `MAML`; with `models`, a state also has the sampled models, [P, ...] under the names "sampled.<parameter>"."""
        states = super().trajectory(support, steps)
        return [{**state, **self.sampled(state, support)} for state in states] if self.models else states

    def predictions(self, state: Params, x: Tensor) -> Tensor:
        """The outputs of all sampled models, [P, n, ...]; of the adapted parameters, [1, n, ...], where none are sampled."""
        models = {name.removeprefix(SAMPLED): value for name, value in state.items() if name.startswith(SAMPLED)}
        if not models:
            return self._output(state, x)[None]
        return vmap(lambda model: self._output({**state, **model}, x))(models)

    def predict(self, state: Params, x: Tensor) -> Tensor:
        outputs = self.predictions(state, x)
        return self.objective.average(outputs) if len(outputs) > 1 else outputs[0]

    def outer_loss(self, state: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        output = self._output(state, episode.query.x)
        logs = {self.objective.metric_name: self.objective.metric(output.detach(), episode.query.y)}
        loss = self._loss(output, episode.query, episode.support)
        if self.log_det_weight == 0:
            return loss, logs
        curvature = log_det(self.curvature(state, episode.query.x, episode.support), self.damping)
        return loss + self.log_det_weight * curvature, {**logs, "log_det": curvature.detach()}

    def curvature(self, state: Params, x: Tensor, support: Examples) -> dict[str, Factors]:
        """The Fisher of the examples `x` at `state`; the `support` decides the sampled labels."""

        def roots(output: Tensor) -> Tensor:
            found = self.objective.fisher_roots(output)
            if self.labels == "expected":
                return found
            return (found * normal(episode_key(support), 0, (*found.shape[:2], 1), found)).sum(0, keepdim=True)

        point = {name: state[name] for name in self.adapted}
        layers = [layer for layer in self.layers if names_in(layer)[0] in self.adapted]
        return fisher(self.backbone, layers, point, x, roots)

    def sampled(self, state: Params, support: Examples) -> Params:
        """`models` samples of N(state, H^-1), H of the support examples: "sampled.<parameter>" [P, ...]."""
        factors, key = self.curvature(state, support.x, support), episode_key(support)
        noise = [
            normal(key, stream, (self.models, pair.slopes.shape[-1], pair.rows.shape[-1]), pair.rows)
            for stream, pair in enumerate(factors.values(), start=1)
        ]
        found = vmap(lambda *z: deviations(self.backbone, factors, self.damping, list(z)))(*noise)
        return {f"{SAMPLED}{name}": state[name] + value for name, value in found.items() if name in self.adapted}

    def _output(self, params: Params, x: Tensor) -> Tensor:
        return functional_call(self.backbone, {name: params[name] for name in self.adapted}, (x,))

    def _loss(self, output: Tensor, examples: Examples, support: Examples) -> Tensor:
        return task_loss(self.objective, output, examples, support, self.reduction)
