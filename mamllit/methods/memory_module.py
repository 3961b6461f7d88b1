"""The memory module: a network learns features whose nearest neighbour in a growing memory has the right label.

L. Kaiser, O. Nachum, A. Roy, S. Bengio: Learning to Remember Rare Events, ICLR 2017, arXiv 1703.03129; the authors' code is
in tensorflow/models, learning_to_remember_rare_events.

The memory has S slots, each with a key (a unit vector), a value (a label) and an age. The answer to a query q (the features
after a linear map, scaled to length 1) is the value of the nearest key. Its loss, with K+ and K- the nearest keys of the
right and of a wrong label among the k nearest (and the slot that its label was last written to),

    max(0, q K- - q K+ + margin) - margin,    similarities below 0 counting as 0,

has a gradient through q only: keys are constants. Then the true label is shown, and the memory changes in one slot: where the
answer was right the key becomes normalise(K + q), else (q, label) replaces the oldest slot. All ages rise by 1, that of the
slot becomes 0; "oldest" is by age + U(-noise, noise) in training.

Training is that of `mamllit.systems.MemoryStream`: several streams, in rounds, side by side share one memory, each with its
own labels; the weights are updated after each presentation, and the memory is emptied after each set of streams. In an
evaluation each stream, or episode, has its own memory, large enough to forget nothing.

Departures: an empty slot never answers; in the authors' code it has the value 0, a label like any other (either way, accuracy
without a shot is 1/N^2: only at the first image of a stream can the answer be right, with probability 1/N). Evaluation adds
no noise to the ages, which changes nothing, because no slot is evicted. A slot that one query updates and another overwrites
in the same step is overwritten.

    >>> import torch
    >>> from mamllit import Classification, Examples, MemoryModule
    >>> method = MemoryModule(torch.nn.Identity(), Classification(), features=2)
    >>> _ = torch.nn.init.eye_(method.query.weight)
    >>> memory = method.adapt(Examples(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]), torch.tensor([0, 1, 0]), ways=2))
    >>> memory.values.tolist(), memory.keys[:2].tolist()
    ([0, 1, -1], [[1.0, 0.0], [0.0, 1.0]])
    >>> method.predict(memory, torch.tensor([[0.0, 5.0]])).argmax().item()
    1
"""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamllit.core.episode import Episode, Examples
from mamllit.core.stream import Stream
from mamllit.methods.parts.streams import StreamMethod, in_rounds
from mamllit.objectives import Objective

EMPTY = -1  # the value of a slot, or the slot of a label, that nothing was written to
ABSENT = -2.0  # the score of a label that the memory does not hold: below every cosine


class RareMemory(NamedTuple):
    """`keys` [S, D], their `values` [S] and `ages` [S], and the slot last written to for each of Y labels, `recent` [Y]."""

    keys: Tensor
    values: Tensor
    ages: Tensor
    recent: Tensor


class MemoryModule(StreamMethod):
    """Learn features for finding the nearest example in a memory of labelled examples.

    Args:
        backbone: gives features [n, D].
        objective: `Classification`, for the metric; the loss is the margin loss.
        features: D.
        margin: of the loss, > 0.
        neighbours: k, how many of the nearest keys the loss looks at.
        keep: fraction of the features that dropout keeps in training, in (0, 1].

    Raises:
        ValueError: for a number out of bounds.
    """

    reads_features: ClassVar[bool] = True

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        features: int = 256,
        margin: float = 0.1,
        neighbours: int = 256,
        keep: float = 0.3,
    ) -> None:
        super().__init__()
        if features < 1 or neighbours < 1:
            raise ValueError(f"features is {features} and neighbours is {neighbours}; both must be >= 1")
        if margin <= 0:
            raise ValueError(f"margin is {margin}; it must be > 0")
        if not 0 < keep <= 1:
            raise ValueError(f"keep is {keep}; it must be in (0, 1]")
        self.backbone, self.objective, self.margin = backbone, objective, margin
        self.features, self.neighbours, self.keep = features, neighbours, keep
        self.query = nn.Linear(features, features, bias=False)
        nn.init.trunc_normal_(self.query.weight, std=0.01, a=-0.02, b=0.02)

    def queries(self, x: Tensor, chance: Tensor | None = None) -> Tensor:
        """Unit vectors [n, D] of images; `chance` [n, D], uniform in (0, 1), decides what dropout drops; None: nothing."""
        features = self.backbone(x).flatten(1)
        if chance is not None:
            features = features * (chance < self.keep).to(features.dtype) / self.keep
        return F.normalize(self.query(features), dim=-1)

    def empty(self, slots: int, labels: int, like: Tensor) -> RareMemory:
        """An empty memory, with the dtype and device of `like`."""
        integers = like.new_zeros((), dtype=torch.long)
        return RareMemory(
            like.new_zeros(slots, self.features), integers.new_full((slots,), EMPTY), like.new_zeros(slots),
            integers.new_full((labels,), EMPTY),
        )  # fmt: skip

    def loss(self, memory: RareMemory, q: Tensor, y: Tensor) -> Tensor:
        """The margin loss of queries `q` [B, D] with labels `y` [B], [B]."""
        similarity = q @ memory.keys.mT
        near = similarity.topk(min(self.neighbours, similarity.shape[-1])).indices
        recent = memory.recent[y][:, None]
        pool = torch.cat([near, recent.clamp_min(0)], -1)
        own = memory.values[pool] == y[:, None]
        found = similarity.gather(-1, pool).clamp_min(0)
        right, wrong = (torch.where(chosen, found, 0.0).amax(-1) for chosen in (own, ~own))
        return (wrong - right + self.margin).clamp_min(0) - self.margin

    def scores(self, memory: RareMemory, q: Tensor, labels: int) -> Tensor:
        """The similarity of the nearest key of each label, [B, labels]."""
        similarity = q @ memory.keys.mT
        of_label = memory.values[:, None] == torch.arange(labels, device=q.device)
        return similarity[..., None].masked_fill(~of_label, ABSENT).amax(-2)

    # ---- the verbs: one stream, or episode, with a memory of its own -------------------------------------------------------

    def adapt(self, support: Examples, steps: int | None = None) -> RareMemory:
        support = in_rounds(support)
        q = self.queries(support.x).detach()
        memory = self.empty(len(q), support.ways, q)
        for query, label in zip(q.split(1), support.y.split(1), strict=True):
            memory = remember(memory, query, label)
        return memory

    def predict(self, state: RareMemory, x: Tensor) -> Tensor:
        return self.scores(state, self.queries(x), state.recent.shape[-1])

    def answers(self, stream: Examples) -> Tensor:
        q = self.queries(stream.x)
        memory, answers = self.empty(len(q), stream.ways, q), []
        for query, label in zip(q.split(1), stream.y.split(1), strict=True):
            answers.append(self.scores(memory, query, stream.ways)[0])
            memory = remember(memory, query.detach(), label)
        return torch.stack(answers)

    def meta_loss(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean margin loss: of the presentations of a stream, or of the query of an episode after its support."""
        if not isinstance(episode, Stream):
            memory, q = self.adapt(episode.support), self.queries(episode.query.x)
            output = self.scores(memory, q.detach(), episode.ways)
            logs = {self.objective.metric_name: self.objective.metric(output, episode.query.y)}
            return self.loss(memory, q, episode.query.y).mean(), logs
        q = self.queries(episode.query.x)
        memory, losses = self.empty(len(q), episode.ways, q), []
        for query, label in zip(q.split(1), episode.query.y.split(1), strict=True):
            losses.append(self.loss(memory, query, label))
            memory = remember(memory, query.detach(), label)
        hit, seen = self.hits(self.answers(episode.query).detach(), episode.query), episode.presentations()
        return torch.cat(losses).mean(), {self.objective.metric_name: torch.where(seen > 0, hit, 0.0).mean()}


def remember(memory: RareMemory, q: Tensor, y: Tensor, noise: Tensor | None = None) -> RareMemory:
    """The memory after the labels `y` [B] of queries `q` [B, D] were shown, one slot changed for each.

    Args:
        noise: [S], added to the ages when choosing the oldest slot.
    """
    similarity = (q @ memory.keys.mT).masked_fill(memory.values == EMPTY, ABSENT)
    nearest = similarity.argmax(-1)
    right = memory.values[nearest] == y
    ages = memory.ages + 1
    by_age = (ages if noise is None else ages + noise).argsort(descending=True, stable=True)
    oldest = by_age[: len(y)]  # the b-th query may take the b-th oldest
    moved = F.normalize(memory.keys[nearest] + q, dim=-1)
    keys = put(memory.keys, nearest, torch.where(right[:, None], moved, memory.keys[nearest]), right)
    keys = put(keys, oldest, q, ~right)
    values = put(memory.values, oldest, y, ~right)
    slot = torch.where(right, nearest, oldest)
    ages = put(ages, slot, torch.zeros_like(ages[: len(y)]), torch.ones_like(right))
    return RareMemory(keys, values, ages, memory.recent.scatter(0, y, slot))


def put(rows: Tensor, place: Tensor, new: Tensor, chosen: Tensor) -> Tensor:
    """`rows` [S, ...] with the `chosen` of `new` [B, ...] at their `place` [B]."""
    spare = torch.cat([rows, new[:1]])  # what is not chosen goes to a row behind the last
    place = torch.where(chosen, place, len(rows))
    return spare.scatter(0, place.view(-1, *[1] * (new.dim() - 1)).expand_as(new), new)[:-1]
