"""MANN: a recurrent network with an external memory, which learns to bind images to the labels shown after them.

A. Santoro, S. Bartunov, M. Botvinick, D. Wierstra, T. Lillicrap: Meta-Learning with Memory-Augmented Neural Networks, ICML
2016 (One-shot Learning with Memory-Augmented Neural Networks, arXiv 1605.06065).

At each step of a stream an LSTM gets the image and the label of the *previous image*, so it must remember the image until its
label comes. It produces a key per head. The key addresses the memory for reading (softmax of the cosines), and is written by
"least recently used access": to where the head has just read, or to the least used slot, in learned proportions.

    usage_t = decay * usage_{t-1} + sum of all heads' reading and writing weights
    w_write = sigmoid(a) * w_read_{t-1} + (1 - sigmoid(a)) * least used_{t-1}
    M_t = M_{t-1} with the least used slots emptied, + w_write k_t
    w_read = softmax_i cos(k_t, M_t(i)),    r_t = w_read M_t,    logits_t = W [h_t, r_t]

The loss is the sum of the cross-entropies of all steps, including those at a class's first image. The reported metric is the
accuracy by presentation. What the tables of later papers call MANN's 1-shot and 5-shot accuracy, 82.8 and 94.9, are the 2nd
and the 5th presentation; at the 1st the best possible is (1/N) sum 1/n, 45.7% for 5 classes.

Our choices, where the paper leaves it open: k = tanh(W_k h), a = W_a h, one per head; the controller also reads r_{t-1}
(section 3.1; equation 9 omits it); a step writes before it reads; head j's "least used" slot is the j-th least used; M_0 is
1e-6 everywhere, the first read weights and the first usage are at slot 0 only, all other states are zero; linear layers are
initialised Glorot uniform.

    >>> import torch
    >>> from mamllit import MANN, Classification, Stream
    >>> method = MANN(torch.nn.Identity(), Classification(), features=9, ways=3, hidden=8, slots=6, width=4, heads=2)
    >>> stream = Stream.of(torch.rand(12, 1, 3, 3), torch.arange(12) % 3, ways=3)
    >>> method.answers(stream.query).shape  # one answer per image, each before its label is shown
    torch.Size([12, 3])
    >>> method.curve(stream, steps=3)[0].shape  # accuracy at the 1st, 2nd, 3rd and 4th image of a class
    torch.Size([4])
"""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamllit.core.episode import Examples
from mamllit.methods.parts.streams import StreamMethod, in_rounds
from mamllit.objectives import Objective


class Controller(NamedTuple):
    """The state of the LSTM: `hidden` and `cell` [..., D], and the label shown last, as `label` [..., N] (zeros before any)."""

    hidden: Tensor
    cell: Tensor
    label: Tensor


class Memory(NamedTuple):
    """`slots` [..., S, M], their `usage` [..., S], and of each head where it `read` [..., R, S] last, and what, `content`
    [..., R * M]."""

    slots: Tensor
    usage: Tensor
    read: Tensor
    content: Tensor


class LSTMLearner(StreamMethod):
    """The baseline without a memory: an LSTM that gets each image with the label of the previous image.

    Args:
        backbone: gives features [n, ...] of the images; `torch.nn.Identity` for pixels, as in the paper.
        objective: `Classification`.
        features: D of the flattened features; 400 for images of 20 x 20.
        ways: N; the last layer has a row for each label.
        hidden: size of the LSTM's state.

    Raises:
        ValueError: for a size below 1; for a stream with another number of ways.
    """

    reads_features: ClassVar[bool] = True
    content = 0  # size of what is read from the memory

    def __init__(
        self, backbone: nn.Module, objective: Objective, features: int = 400, ways: int = 5, hidden: int = 200
    ) -> None:
        super().__init__()
        check_sizes(features=features, ways=ways, hidden=hidden)
        self.backbone, self.objective, self.ways, self.hidden = backbone, objective, ways, hidden
        self.given = nn.Linear(features + ways, 4 * hidden)  # of the four gates: what comes from outside
        self.recurrent = nn.Linear(hidden + self.content, 4 * hidden, bias=False)
        self.out = nn.Linear(hidden + self.content, ways)
        self.glorot()

    def glorot(self) -> None:
        """Initialise weights Glorot uniform and biases to zero, except in the backbone."""
        for name, value in self.named_parameters():
            if not name.startswith("backbone."):
                nn.init.xavier_uniform_(value) if value.dim() > 1 else nn.init.zeros_(value)

    # ---- the verbs ---------------------------------------------------------------------------------------------------

    def answers(self, stream: Examples) -> Tensor:
        return self.run(stream)[0]

    def adapt(self, support: Examples, steps: int | None = None) -> tuple[Tensor, ...]:
        return self.run(in_rounds(support))[1]

    def predict(self, state: tuple[Tensor, ...], x: Tensor) -> Tensor:
        """The outputs for each of `x` [n, ...], as if it came next."""
        label = Controller(*state[:3]).label
        given = self.see(x, label.expand(len(x), -1))
        each = tuple(value.expand(len(x), *value.shape) for value in state)
        return self.out(self.step(given, each)[0])

    # ---- one step ----------------------------------------------------------------------------------------------------

    def run(self, stream: Examples) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The outputs for a stream, [L, N], and the state after it."""
        if stream.ways != self.ways:
            raise ValueError(f"the stream has {stream.ways} ways, but the last layer has {self.ways}; give both the same")
        labels = F.one_hot(stream.y, self.ways).to(self.out.weight.dtype)
        given = self.see(stream.x, torch.cat([torch.zeros_like(labels[:1]), labels[:-1]]))
        state, known = self.begin(labels.new_zeros(())), []
        for row in given.unbind(0):
            output, state = self.step(row, state)
            known.append(output)
        hidden, cell, _, *rest = state
        return self.out(torch.stack(known)), (hidden, cell, labels[-1], *rest)

    def see(self, x: Tensor, labels: Tensor) -> Tensor:
        """The gates' inputs from images `x` [n, ...] and the `labels` [n, N] of the images before, for a whole stream."""
        return self.given(torch.cat([self.backbone(x).flatten(1), labels], -1))

    def begin(self, like: Tensor) -> tuple[Tensor, ...]:
        """The state before the first image, with the dtype and device of `like`."""
        zeros = like.new_zeros(self.hidden)
        return Controller(zeros, zeros, like.new_zeros(self.ways))

    def step(self, given: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What the last layer sees of an image, and the state after it; `given` [..., 4 * D] is what `see` made of it."""
        hidden, cell, label = state
        hidden, cell = self.control(given + self.recurrent(hidden), cell)
        return hidden, Controller(hidden, cell, label)

    @staticmethod
    def control(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden state and cell of an LSTM, from the sums at its gates [..., 4 * D]."""
        i, f, g, o = gates.chunk(4, -1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell


class MANN(LSTMLearner):
    """The LSTM with a memory.

    Args:
        backbone, objective, features, ways, hidden: see `LSTMLearner`.
        slots, width: S and M of the memory.
        heads: R, heads that read and write.
        decay: of a slot's usage, in [0, 1); the paper's supplement has .99, re-implementations .95.
        tied: write the key that is used for reading, as in the paper; else a separate vector, as re-implementations do.

    Raises:
        ValueError: for a size below 1, more heads than slots, or a decay out of bounds.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        features: int = 400,
        ways: int = 5,
        hidden: int = 200,
        slots: int = 128,
        width: int = 40,
        heads: int = 4,
        decay: float = 0.99,
        tied: bool = True,
    ) -> None:
        check_sizes(slots=slots, width=width, heads=heads)
        if heads > slots:
            raise ValueError(f"heads is {heads} and slots is {slots}; each head writes to its own slot: heads <= slots")
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be in [0, 1)")
        self.content = heads * width
        super().__init__(backbone, objective, features, ways, hidden)
        self.slots, self.width, self.heads, self.decay = slots, width, heads, decay
        self.key = nn.Linear(hidden, heads * width)
        self.written = None if tied else nn.Linear(hidden, heads * width)
        self.gate = nn.Linear(hidden, heads)
        self.glorot()

    def begin(self, like: Tensor) -> tuple[Tensor, ...]:
        first = F.one_hot(torch.zeros((), dtype=torch.long, device=like.device), self.slots).to(like.dtype)
        slots = like.new_full((self.slots, self.width), 1e-6)
        return (*super().begin(like), *Memory(slots, first, first.expand(self.heads, -1), like.new_zeros(self.content)))

    def step(self, given: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        (hidden, cell, label), memory = state[:3], Memory(*state[3:])
        hidden, cell = self.control(given + self.recurrent(torch.cat([hidden, memory.content], -1)), cell)
        key = self.key(hidden).tanh().unflatten(-1, (self.heads, self.width))
        written = key if self.written is None else self.written(hidden).tanh().unflatten(-1, (self.heads, self.width))
        memory = access(memory, key, written, self.gate(hidden).sigmoid(), self.decay)
        return torch.cat([hidden, memory.content], -1), (*Controller(hidden, cell, label), *memory)


def access(memory: Memory, key: Tensor, written: Tensor, gate: Tensor, decay: float) -> Memory:
    """One step of least recently used access: write `written` [..., R, M], then read by `key` [..., R, M].

    Args:
        gate: [..., R] in (0, 1): the share of a writing that goes to where the head read last.
        decay: of the usage.
    """
    least = memory.usage.topk(key.shape[-2], largest=False).indices  # [..., R], one for each head; no gradient goes through
    own = F.one_hot(least, memory.usage.shape[-1]).to(key.dtype)
    write = gate[..., None] * memory.read + (1 - gate[..., None]) * own
    kept = memory.slots * (1 - own.sum(-2))[..., None]
    slots = kept + write.mT @ written
    cosine = (F.normalize(key, dim=-1) @ slots.mT) / slots.norm(dim=-1).clamp_min(1e-8)[..., None, :]
    read = cosine.softmax(-1)
    usage = decay * memory.usage + (read + write).detach().sum(-2)
    return Memory(slots, usage, read, (read @ slots).flatten(-2))


def check_sizes(**sizes: int) -> None:
    """Raise `ValueError` for a size below 1."""
    if wrong := [f"{name} is {size}; it must be >= 1" for name, size in sizes.items() if size < 1]:
        raise ValueError("; ".join(wrong))
