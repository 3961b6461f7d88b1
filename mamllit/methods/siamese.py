"""Siamese networks: trained to say whether two images are of one class, used to find the most similar one.

G. Koch, R. Zemel, R. Salakhutdinov: Siamese Neural Networks for One-shot Image Recognition, ICML Deep Learning Workshop 2015.

    p(x, x') = sigmoid(sum_j a_j |h(x)_j - h(x')_j| + b)        (cross-entropy on pairs, same or different)

What the tables of few-shot papers call "Siamese" is the re-implementation of O. Vinyals et al. 2016 (97.3 / 98.4 / 88.1 /
97.0 on Omniglot): the same training, but a query gets the class of the support image with the largest cosine (`classify:
cosine`). Koch's own system, with 92.0 in 20-way one-shot trials within an alphabet, is `classify: verification` (the largest
p) and `pairs: as_drawn` on `mamllit.backbones.KochNet` and `mamllit.data.OmniglotPairsDataModule`, which draws pairs.

Departures: with `pairs: balanced`, pairs are all pairs of query and support of an episode, and the two kinds count equally,
which is what drawing half of the pairs of each kind does on average; the bias b, absent in the paper's formula, lets p(x, x)
differ from 1/2. Vinyals et al. tell neither network nor optimiser. Koch's learning rate, momentum and L2 penalty of each layer
are not published, so that one optimiser serves all layers.

    >>> import torch
    >>> from mamllit.core.episode import Examples
    >>> from mamllit.methods import SiameseNetworks
    >>> from mamllit.objectives import Classification
    >>> method = SiameseNetworks(torch.nn.Identity(), Classification(), features=2)
    >>> task = method.adapt(Examples(torch.eye(2), torch.tensor([0, 1]), ways=2))
    >>> method.predict(task, torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mamllit.core.episode import Episode, Examples
from mamllit.methods.base import Method
from mamllit.methods.parts.features import best_of_class, cosines, embed
from mamllit.objectives import Objective


class SiameseNetworks(Method):
    """Learn features from pairs.

    Args:
        backbone: h; its output [n, D] are features.
        objective: `Classification`, which reports; what is minimised is the loss on pairs.
        features: D.
        classify: "cosine" or "verification", how a query gets its class.
        pairs: how the pairs of query and support of an episode count in the loss. "balanced": those of one class as much as
            those of two; the accuracy of training is that of the classes. "as_drawn": each pair the same, for data that draw
            pairs; the accuracy of training is that of p > 1/2.

    Raises:
        ValueError: for an unknown `classify` or `pairs`.
    """

    reads_features: ClassVar[bool] = True

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        features: int,
        classify: Literal["cosine", "verification"] = "cosine",
        pairs: Literal["balanced", "as_drawn"] = "balanced",
    ) -> None:
        super().__init__()
        if classify not in ("cosine", "verification"):
            raise ValueError(f"classify is {classify!r}; it must be 'cosine' or 'verification'")
        if pairs not in ("balanced", "as_drawn"):
            raise ValueError(f"pairs is {pairs!r}; it must be 'balanced' or 'as_drawn'")
        self.backbone, self.objective, self.classify, self.pairs = backbone, objective, classify, pairs
        self.verify = nn.Linear(features, 1)

    def adapt(self, support: Examples, steps: int | None = None) -> Examples:
        return support

    def predict(self, state: Examples, x: Tensor) -> Tensor:
        return self._scores(*embed(self.backbone, state, x), state)

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
        weight = alike / alike.sum() + (1 - alike) / (1 - alike).sum()
        loss = F.binary_cross_entropy_with_logits(logits, alike, weight / 2, reduction="sum")
        accuracy = self.objective.metric(self._scores(support.detach(), query.detach(), episode.support), episode.query.y)
        return loss, {self.objective.metric_name: accuracy.detach()}

    def _scores(self, support: Tensor, query: Tensor, state: Examples) -> Tensor:
        similarity = cosines(query, support) if self.classify == "cosine" else self.same(query, support)
        return best_of_class(similarity, state)
