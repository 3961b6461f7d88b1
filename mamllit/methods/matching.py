"""Matching networks: a query is labelled by attention over the support.

O. Vinyals, C. Blundell, T. Lillicrap, K. Kavukcuoglu, D. Wierstra: Matching Networks for One Shot Learning, NIPS 2016, arXiv
1606.04080.

    P(y | x) = sum_i a(x, x_i) y_i,    a = softmax over the support of scale * cos(f(x), g(x_i)),    loss = -log P(y | x)

Settings: `scale` is 1 in the paper, which caps what P can be: with features that are never negative it is at most e / (e + N
- 1) for 1 shot, and the loss at least 0.905 for 5 ways and 2.078 for 20. Later work takes 100. `score: summed_cosine` is S.
Ravi and H. Larochelle's form, 2017: the cosines summed over a class are the logits. `context_steps` > 0 turns full context
embeddings on (appendix A): g by a bidirectional LSTM over the support, f by that many steps of an LSTM that attends to g.

Departures, where the paper is silent: f and g share their network (as in Ravi's code); the LSTM of f takes the read vector as
an input beside f'(x), not as part of its state, because the sizes printed in equation 3 do not fit; the bidirectional LSTM
reads the support in the episode's order.

    >>> import torch
    >>> from mamllit.core.episode import Examples
    >>> from mamllit.methods import MatchingNetworks
    >>> from mamllit.objectives import Classification
    >>> method = MatchingNetworks(torch.nn.Identity(), Classification())
    >>> task = method.adapt(Examples(torch.eye(2), torch.tensor([0, 1]), ways=2))
    >>> method.predict(task, torch.tensor([[5.0, 0.0]])).exp()  # e / (e + 1) and 1 / (e + 1)
    tensor([[0.7311, 0.2689]])
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamllit.core.episode import Examples
from mamllit.methods.base import Method
from mamllit.methods.parts.features import cosines, embed, members
from mamllit.objectives import Objective


class MatchingNetworks(Method):
    """Learn features by which attention over the support finds the class.

    Args:
        backbone: f' and g', one network; its output [n, D] are features.
        objective: `Classification`.
        score: "attention", the paper's, or "summed_cosine".
        scale: of the cosines, > 0.
        context_steps: steps of the attending LSTM of full context embeddings; 0 for none.
        features: D, needed for full context embeddings.

    Raises:
        ValueError: for an unknown score, a number out of bounds, or context without `features`.
    """

    reads_features: ClassVar[bool] = True

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        score: Literal["attention", "summed_cosine"] = "attention",
        scale: float = 1.0,
        context_steps: int = 0,
        features: int | None = None,
    ) -> None:
        super().__init__()
        if score not in ("attention", "summed_cosine"):
            raise ValueError(f"score is {score!r}; it must be 'attention' or 'summed_cosine'")
        if scale <= 0:
            raise ValueError(f"scale is {scale}; it must be > 0")
        if context_steps < 0:
            raise ValueError(f"context_steps is {context_steps}; it must be >= 0 (0: no full context embeddings)")
        if context_steps and features is None:
            raise ValueError(f"context_steps is {context_steps}; full context embeddings need `features`, the backbone's D")
        self.backbone, self.objective, self.score, self.scale = backbone, objective, score, scale
        self.context = FullContext(features, context_steps) if context_steps and features is not None else None

    def adapt(self, support: Examples, steps: int | None = None) -> Examples:
        return support

    def predict(self, state: Examples, x: Tensor) -> Tensor:
        support, query = embed(self.backbone, state, x)
        if self.context is not None:
            support, query = self.context(support, query)
        similarity = self.scale * cosines(query, support)
        if self.score == "summed_cosine":
            return similarity @ members(state, similarity)
        other = members(state, similarity) == 0
        log_attention = similarity.log_softmax(-1)
        return log_attention[:, :, None].masked_fill(other, -torch.inf).logsumexp(1)  # log P; no 0 at a large scale


class LSTMCell(nn.LSTMCell):
    """PyTorch's LSTM cell, built from operations that `torch.func.vmap` supports."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        h, cell = state
        gates = F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)
        i, f, g, o = gates.chunk(4, -1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell


class FullContext(nn.Module):
    """Puts support features [n, D] in the context of each other, and query features [q, D] in that of the support.

    Args:
        features: D.
        steps: of attention.
    """

    def __init__(self, features: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.forwards, self.backwards = LSTMCell(features, features), LSTMCell(features, features)
        self.attending = LSTMCell(2 * features, features)

    def forward(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        g = support + self._read(self.forwards, support) + self._read(self.backwards, support.flip(0)).flip(0)
        h = cell = torch.zeros_like(query)
        for _ in range(self.steps):
            read = (h @ g.mT).softmax(-1) @ g  # at first the mean of g
            h, cell = self.attending(torch.cat([query, read], -1), (h, cell))
            h = h + query
        return g, h

    @staticmethod
    def _read(lstm: nn.Module, sequence: Tensor) -> Tensor:
        state = torch.zeros_like(sequence[:1]), torch.zeros_like(sequence[:1])
        hidden = []
        for row in sequence.split(1):
            state = lstm(row, state)
            hidden.append(state[0])
        return torch.cat(hidden)
