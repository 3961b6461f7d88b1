"""Siamese networks: trained to say whether two images are of one class, used to find the most similar one.

G. Koch, R. Zemel, R. Salakhutdinov: Siamese Neural Networks for One-shot Image Recognition, ICML Deep Learning Workshop 2015.

    p(x, x') = sigmoid(sum_j a_j |h(x)_j - h(x')_j| + b)        (cross-entropy on pairs, same or different)

What the tables of few-shot papers call "Siamese" is the re-implementation of O. Vinyals et al. 2016 (97.3 / 98.4 / 88.1 /
97.0 on Omniglot): the same training, but a query gets the class of the support image with the largest cosine (`classify:
cosine`). Koch's own system, with 92.0 in 20-way one-shot trials within an alphabet, is `classify: verification` (the largest
p) and `pairs: as_drawn` on `mamllit.backbones.KochNet` and `mamllit.data.OmniglotPairsDataModule`, which draws pairs.

These numbers of Vinyals et al. are with the network fine-tuned on each support; without, it reaches 96.7 / 98.4 / 88.0 /
96.5. They do not say how they fine-tune. Here, with `inner_steps` > 0, the weights of h take steps

    h <- h - inner_lr grad of the loss on the pairs of two different images of the support,

those of one class counting as much as those of two (with one shot, all are of two classes). a and b stay fixed, so that they
cannot do what the features should; batch norm uses the statistics of the support alone. Meta-training does not change.

Departures: with `pairs: balanced`, pairs are all pairs of query and support of an episode, and the two kinds count equally,
as drawing half of the pairs of each kind does on average; the bias b, absent in the paper's formula, lets p(x, x) differ from
1/2. Vinyals et al. give neither network nor optimiser, nor the loss, step size and number of steps of fine-tuning: those
above are ours. Koch's learning rate, momentum and L2 penalty of each layer are not published, so one optimiser serves all
layers.

    >>> import torch
    >>> from mamllit.core.episode import Examples
    >>> from mamllit.methods import SiameseNetworks
    >>> from mamllit.objectives import Classification
    >>> method = SiameseNetworks(torch.nn.Identity(), Classification(), features=2)
    >>> task = method.adapt(Examples(torch.eye(2), torch.tensor([0, 1]), ways=2))
    >>> method.predict(task, torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
"""

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mamllit.core.adapted import adapted_parameters
from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params, gradient_step
from mamllit.methods.base import Method
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.methods.parts.features import best_of_class, cosines, embed
from mamllit.objectives import Objective


class Learned(NamedTuple):
    """The `support` that a query is compared with, and the `weights` of h by name that were fine-tuned on it."""

    support: Examples
    weights: Params


class SiameseNetworks(Method):
    """Learn features from pairs.

    Args:
        backbone: h; its output [n, D] are features.
        objective: `Classification`, for the metric; the loss is that on pairs.
        features: D.
        classify: "cosine" or "verification", how a query gets its class.
        pairs: how the pairs of query and support of an episode count in the loss. "balanced": those of one class as much as
            those of two; the accuracy of training is that of the classes. "as_drawn": each pair the same, for data that draw
            pairs; the accuracy of training is that of p > 1/2.
        inner_steps: of fine-tuning on the support of a task, unless `adapt` is told otherwise; 0 (default): never fine-tune.
        inner_lr: of these steps.

    Raises:
        ValueError: for an unknown `classify` or `pairs`; with `inner_steps`, for a negative number, or a backbone with running
            buffers or without parameters.
    """

    reads_features: ClassVar[bool] = True

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        features: int,
        classify: Literal["cosine", "verification"] = "cosine",
        pairs: Literal["balanced", "as_drawn"] = "balanced",
        inner_steps: int = 0,
        inner_lr: float = 0.01,
    ) -> None:
        super().__init__()
        if classify not in ("cosine", "verification"):
            raise ValueError(f"classify is {classify!r}; it must be 'cosine' or 'verification'")
        if pairs not in ("balanced", "as_drawn"):
            raise ValueError(f"pairs is {pairs!r}; it must be 'balanced' or 'as_drawn'")
        self.backbone, self.objective, self.classify, self.pairs = backbone, objective, classify, pairs
        self.verify = nn.Linear(features, 1)
        self.inner_steps, self.inner_lr = inner_steps, inner_lr
        self.adapted: list[str] = []
        if inner_steps:
            check_inner_loop(backbone, inner_lr, inner_steps, "mean")
            self.adapted = adapted_parameters(backbone)

    def trajectory(self, support: Examples, steps: int) -> list[Learned]:
        if not self.inner_steps:
            return [Learned(support, {})]
        own = dict(self.backbone.named_parameters())
        states = [Learned(support, {name: own[name] for name in self.adapted})]
        for _ in range(steps):
            loss = lambda weights: self.support_loss(Learned(support, weights))  # noqa: E731
            moved = gradient_step(loss, states[-1].weights, self.adapted, self.inner_lr, first_order=True)
            states.append(Learned(support, moved))
        return states

    def adapt(self, support: Examples, steps: int | None = None) -> Learned:
        return self.trajectory(support, self.inner_steps if steps is None else steps)[-1]

    def predict(self, state: Learned, x: Tensor) -> Tensor:
        return self._scores(*embed(self._features(state), state.support, x), state.support)

    def support_loss(self, state: Learned) -> Tensor:
        """What fine-tuning minimises: the cross-entropy of the pairs of two images of the support."""
        support, features = state.support, self._features(state)(state.support.x).flatten(1)
        alike = (support.y[:, None] == support.y).to(features.dtype)
        itself = torch.eye(len(alike), dtype=alike.dtype, device=alike.device)  # says nothing of h: its distance is 0
        return self._balanced(self.same(features, features), alike - itself, 1 - alike)

    def same(self, a: Tensor, b: Tensor) -> Tensor:
        """The logit of p for every row of `a` [q, D] with every row of `b` [n, D], [q, n]."""
        return self.verify((a[:, None] - b).abs())[..., 0]

    def meta_loss(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """The cross-entropy of all pairs of query and support."""
        support, query = embed(self.backbone, episode.support, episode.query.x)
        alike = (episode.query.y[:, None] == episode.support.y).to(query.dtype)
        logits = self.same(query, support)
        if self.pairs == "as_drawn":
            right = (1 + logits.detach().sign() * (2 * alike - 1)) / 2  # p of 1/2 is half right
            return F.binary_cross_entropy_with_logits(logits, alike), {self.objective.metric_name: right.mean()}
        loss = self._balanced(logits, alike, 1 - alike)
        accuracy = self.objective.metric(self._scores(support.detach(), query.detach(), episode.support), episode.query.y)
        return loss, {self.objective.metric_name: accuracy.detach()}

    @staticmethod
    def _balanced(logits: Tensor, alike: Tensor, different: Tensor) -> Tensor:
        """The cross-entropy of pairs, of which `alike` and `different` have a 1 for their kind; both kinds count 1/2."""
        weight = alike / alike.sum().clamp_min(1) + different / different.sum().clamp_min(1)
        return F.binary_cross_entropy_with_logits(logits, alike, weight / 2, reduction="sum")

    def _features(self, state: Learned) -> Callable[[Tensor], Tensor]:
        return lambda x: functional_call(self.backbone, state.weights, (x,))

    def _scores(self, support: Tensor, query: Tensor, state: Examples) -> Tensor:
        similarity = cosines(query, support) if self.classify == "cosine" else self.same(query, support)
        return best_of_class(similarity, state)
