"""A new head on frozen features: the most common method today.

W.-Y. Chen, Y.-C. Liu, Z. Kira, Y.-C. F. Wang, J.-B. Huang: A Closer Look at Few-shot Classification, ICLR 2019, arXiv
1904.04232: "Baseline" (a linear head) and "Baseline++" (logits = scale times the cosine with a vector per class).

    z_i = f(x_i) for the support, once;    W <- W - inner_lr grad [ L(W z) + weight_decay / 2 |W|^2 ]

The features come from a pre-trained network (`mamllit.systems.PreTrainer`, `--init_from` its run; the experiment has
`max_steps: 0`).

Departures: gradient descent on the whole support instead of SGD on batches of 4 with momentum and dampening for 100 epochs;
the linear head starts at zero and the cosine head at the class means, so that it is a nearest-mean classifier before its
first step.

    >>> import torch
    >>> from mamllit.core.episode import Examples
    >>> from mamllit.methods import LinearProbe
    >>> from mamllit.objectives import Classification
    >>> method = LinearProbe(torch.nn.Identity(), Classification(), inner_lr=1.0, inner_steps=100)
    >>> support = Examples(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1]), ways=2)
    >>> method.predict(method.adapt(support), support.x).argmax(-1)
    tensor([0, 1])
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad

from mamllit.core.episode import Episode, Examples
from mamllit.methods.base import Method, Predictor
from mamllit.methods.parts.checks import check_inner_loop
from mamllit.methods.parts.features import class_means
from mamllit.objectives import Objective


class LinearProbe(Method):
    """Train a head [N, D] on the features of the support.

    Args:
        backbone: gives features [n, D].
        objective: `Classification`.
        inner_lr, inner_steps: of the head's gradient descent.
        head: "linear" ("Baseline") or "cosine" ("Baseline++").
        weight_decay: of the head.
        scale: of the cosines.

    Raises:
        ValueError: for an unknown head, a negative number, or a scale that is not positive.
    """

    reads_features: ClassVar[bool] = True

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        inner_lr: float,
        inner_steps: int = 100,
        head: Literal["linear", "cosine"] = "linear",
        weight_decay: float = 0.001,
        scale: float = 10.0,
    ) -> None:
        super().__init__()
        check_inner_loop(backbone, inner_lr, inner_steps, "mean")
        if head not in ("linear", "cosine"):
            raise ValueError(f"head is {head!r}; it must be 'linear' or 'cosine'")
        if weight_decay < 0:
            raise ValueError(f"weight_decay is {weight_decay}; it must be >= 0")
        if scale <= 0:
            raise ValueError(f"scale is {scale}; it must be > 0")
        self.backbone, self.objective, self.head, self.scale = backbone, objective, head, scale
        self.inner_lr, self.inner_steps, self.weight_decay = inner_lr, inner_steps, weight_decay

    def trajectory(self, support: Examples, steps: int) -> list[Tensor]:
        features = self.backbone(support.x).flatten(1)
        means = class_means(features, support)
        weights = [means if self.head == "cosine" else torch.zeros_like(means)]

        def loss(weight: Tensor) -> Tensor:
            fit = self.objective.loss(self._logits(weight, features), support.y)
            return fit + self.weight_decay / 2 * weight.square().sum()

        for _ in range(steps):
            weights.append(weights[-1] - self.inner_lr * grad(loss)(weights[-1]))
        return weights

    def adapt(self, support: Examples, steps: int | None = None) -> Tensor:
        return self.trajectory(support, self.inner_steps if steps is None else steps)[-1]

    def curve(self, episode: Episode, steps: int, *predictors: Predictor) -> tuple[Tensor, ...]:
        """Stacks the heads after 0, 1, ... steps as one state, so that each query image passes through the network once."""

        def plain(state: Tensor, episode: Episode) -> Tensor:
            return self.predict(state, episode.query.x)

        heads = torch.stack(self.trajectory(episode.support, steps))
        outputs = [predicted(heads, episode).unbind(1) for predicted in predictors or (plain,)]
        return tuple(torch.stack([self.objective.metric(each, episode.query.y) for each in output]) for output in outputs)

    def predict(self, state: Tensor, x: Tensor) -> Tensor:
        """Logits [n, N] for x [n, ...] with a head [N, D]; [n, S, N] with several heads [S, N, D]."""
        return self._logits(state, self.backbone(x).flatten(1))

    def _logits(self, weight: Tensor, features: Tensor) -> Tensor:
        if self.head == "cosine":
            weight, features = F.normalize(weight, dim=-1), self.scale * F.normalize(features, dim=-1)
        return torch.einsum("nd,...cd->n...c", features, weight)
