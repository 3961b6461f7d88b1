"""MANN against a loop written from its equations, by hand, and the facts by which a wrong one is known."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mamllit.core.episode import Episode, Examples
from mamllit.core.stream import Stream
from mamllit.core.tree import item
from mamllit.engine.evaluation import evaluate
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.methods import MANN, LSTMLearner
from mamllit.methods.mann import Memory, access
from mamllit.methods.parts.streams import StreamMethod
from mamllit.objectives import Classification

WAYS, LENGTH, D = 3, 12, 6


def make(tied: bool = True, **sizes: int) -> MANN:
    torch.manual_seed(1)
    sizes = {"features": D, "ways": WAYS, "hidden": 7, "slots": 9, "width": 4, "heads": 2, **sizes}
    return MANN(nn.Identity(), Classification(), tied=tied, **sizes)


def streams(tasks: int = 4, ways: int = WAYS, length: int = LENGTH) -> Stream:
    torch.manual_seed(2)
    return Stream.of(torch.rand(tasks, length, D, dtype=torch.float64), torch.randint(0, ways, (tasks, length)), ways)


# ---- numbers by hand, and a loop -------------------------------------------------------------------------------------


def test_one_access_by_hand() -> None:
    """One head and two slots: slot 1 is used least, so it is emptied and gets 1/4 of the key, slot 0 the other 3/4."""
    memory = Memory(
        torch.tensor([[1.0, 0.0], [5.0, 5.0]]), torch.tensor([2.0, 1.0]), torch.tensor([[1.0, 0.0]]), torch.zeros(2)
    )
    new = access(memory, torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([0.75]), decay=0.5)
    torch.testing.assert_close(new.slots, torch.tensor([[1.0, 1.5], [0.0, 0.5]]))
    cosines = torch.tensor([1.5 / math.hypot(1.0, 1.5), 1.0])
    share = cosines.exp() / cosines.exp().sum()
    torch.testing.assert_close(new.read, share[None])
    torch.testing.assert_close(new.content, share @ torch.tensor([[1.0, 1.5], [0.0, 0.5]]))
    torch.testing.assert_close(new.usage, torch.tensor([1.0, 0.5]) + share + torch.tensor([0.75, 0.25]))


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def by_hand(method: MANN, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The answers to one stream, slot by slot and head by head, from the equations of the module."""
    p = {name: value.detach().numpy() for name, value in method.named_parameters()}
    memory = np.full((method.slots, method.width), 1e-6)
    usage = np.eye(method.slots)[0]
    read = [usage.copy() for _ in range(method.heads)]
    hidden, cell, content, label, answers = np.zeros(method.hidden), 0.0, np.zeros(method.content), np.zeros(WAYS), []
    for image, target in zip(x, y, strict=True):
        seen, before = np.concatenate([image, label]), np.concatenate([hidden, content])
        i, f, g, o = np.split(p["given.weight"] @ seen + p["given.bias"] + p["recurrent.weight"] @ before, 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        keys = np.tanh(p["key.weight"] @ hidden + p["key.bias"]).reshape(method.heads, method.width)
        values = keys
        if method.written is not None:
            values = np.tanh(p["written.weight"] @ hidden + p["written.bias"]).reshape(keys.shape)
        gates = sigmoid(p["gate.weight"] @ hidden + p["gate.bias"])
        least = np.argsort(usage, kind="stable")[: method.heads]
        memory[least] = 0
        new_usage = method.decay * usage
        for head in range(method.heads):
            write = gates[head] * read[head]
            write[least[head]] += 1 - gates[head]
            memory += np.outer(write, values[head])
            new_usage += write
        for head in range(method.heads):
            cosine = memory @ keys[head] / (np.linalg.norm(memory, axis=1) * np.linalg.norm(keys[head]))
            read[head] = np.exp(cosine) / np.exp(cosine).sum()
            new_usage += read[head]
        usage, content = new_usage, np.concatenate([weights @ memory for weights in read])
        answers.append(p["out.weight"] @ np.concatenate([hidden, content]) + p["out.bias"])
        label = np.eye(WAYS)[target]
    return np.stack(answers)


@pytest.mark.parametrize("tied", [True, False])
def test_a_straightforward_loop_gives_the_same_answers(tied: bool) -> None:
    method, episodes = make(tied).double(), streams()
    for task in range(4):
        stream = item(episodes, task).query
        expected = by_hand(method, stream.x.numpy(), stream.y.numpy())
        # topk breaks ties in usage, which only never used slots have, in another order than argsort; both are as empty
        np.testing.assert_allclose(method.answers(stream).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make_one", [make, lambda: LSTMLearner(nn.Identity(), Classification(), D, WAYS, 7)])
def test_the_gradient_is_the_slope(make_one: Callable[[], LSTMLearner], assert_meta_gradient_is_the_slope: Any) -> None:
    assert_meta_gradient_is_the_slope(make_one().double(), streams())


def test_the_lstm_is_torch_s() -> None:
    method = LSTMLearner(nn.Identity(), Classification(), D, WAYS, 7).double()
    stream = item(streams(), 0).query
    lstm = nn.LSTM(D + WAYS, 7).double()
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(method.given.weight)
        lstm.bias_ih_l0.copy_(method.given.bias)
        lstm.weight_hh_l0.copy_(method.recurrent.weight)
        lstm.bias_hh_l0.zero_()
    shown = nn.functional.one_hot(stream.y, WAYS).double().roll(1, 0)
    shown[0] = 0
    hidden, _ = lstm(torch.cat([stream.x, shown], -1))
    torch.testing.assert_close(method.answers(stream), method.out(hidden))


# ---- what the fact sheets of re-implementations trip over -------------------------------------------------------------


def test_the_papers_sizes() -> None:
    def parameters(method: nn.Module) -> int:
        return sum(value.numel() for value in method.parameters())

    assert parameters(MANN(nn.Identity(), Classification())) == 647_569
    assert parameters(MANN(nn.Identity(), Classification(), tied=False)) == 679_729
    assert parameters(LSTMLearner(nn.Identity(), Classification())) == 405 * 800 + 800 + 200 * 800 + 200 * 5 + 5


def test_it_begins_at_chance() -> None:
    episodes = Stream.of(torch.rand(4, 50, 1, 20, 20), torch.randint(0, 5, (4, 50)), 5)
    loss = MetaGradient(MANN(nn.Identity(), Classification()))(episodes).loss
    assert float(loss) == pytest.approx(50 * math.log(5), rel=0.05)


def test_a_label_is_shown_one_step_late() -> None:
    method, stream = make().double(), item(streams(), 0).query
    other = stream.y.clone()
    other[4] = (other[4] + 1) % WAYS
    one, two = (method.answers(Examples(stream.x, y, WAYS)) for y in (stream.y, other))
    assert torch.equal(one[:5], two[:5])
    assert not torch.allclose(one[5], two[5])


def test_no_slot_is_read_with_more_than_the_cosine_allows() -> None:
    method = MANN(nn.Identity(), Classification())
    _, state = method.run(Examples(torch.rand(20, 1, 20, 20), torch.randint(0, 5, (20,)), 5))
    memory = Memory(*state[3:])
    torch.testing.assert_close(memory.read.sum(-1), torch.ones(4))
    assert memory.read.max() <= math.e**2 / (math.e**2 + 127) + 1e-6


def test_a_head_writes_one_in_all_the_least_used_slot_being_its_own() -> None:
    """What is added to the usage beside the reading is the writing; each head's own slot is another one."""
    torch.manual_seed(0)
    usage = torch.rand(9).double()
    read = torch.rand(4, 9).double().softmax(-1)
    memory = Memory(torch.randn(9, 3).double(), usage, read, torch.zeros(12).double())
    gate = torch.rand(4).double()
    new = access(memory, *torch.randn(2, 4, 3).double(), gate, decay=0.9)
    written = new.usage - 0.9 * usage - new.read.sum(0)
    assert float(written.sum()) == pytest.approx(4)
    own = written - (gate[:, None] * read).sum(0)
    assert set((own > 1e-9).nonzero()[:, 0].tolist()) == set(usage.argsort()[:4].tolist())


def test_labels_come_in_where_they_are_shown_and_nowhere_else() -> None:
    method, stream = make().double(), item(streams(), 0).query
    with torch.no_grad():
        method.given.weight[:, D:] = 0
    other = Examples(stream.x, (stream.y + 1) % WAYS, WAYS)
    assert torch.equal(method.answers(stream), method.answers(other))


class Oracle(StreamMethod):
    """Knows every label it was shown, and takes all that were not shown as equally likely."""

    def __init__(self) -> None:
        super().__init__()
        self.objective = Classification()

    def adapt(self, support: Examples, steps: int | None = None) -> Examples:
        return support

    def predict(self, state: Examples, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x.long().flatten(), WAYS).float()

    def answers(self, stream: Examples) -> Tensor:
        shown = torch.nn.functional.one_hot(stream.y, stream.ways).cumsum(0)
        before = torch.cat([torch.zeros_like(shown[:1]), shown[:-1]])
        known = before.gather(1, stream.y[:, None]) > 0
        return torch.where(known, nn.functional.one_hot(stream.y, stream.ways), (before == 0).long()).float()


def test_the_first_presentation_cannot_be_known() -> None:
    """By an oracle it is right in (1/5 + 1/4 + 1/3 + 1/2 + 1) / 5 of the cases, and every later one always."""
    labels = torch.stack([torch.cat([torch.randperm(5), torch.randint(0, 5, (45,))]) for _ in range(3)])
    episodes = Stream.of(torch.zeros(3, 50, 1), labels, 5)
    values = evaluate(Oracle(), episodes, 9)
    assert values.shape == (3, 10)
    torch.testing.assert_close(values[:, 0], torch.full((3,), (1 / 5 + 1 / 4 + 1 / 3 + 1 / 2 + 1) / 5))
    assert (values[:, 1:] == 1).all()


def test_accuracy_by_presentation_by_hand() -> None:
    class Says(Oracle):
        def answers(self, stream: Examples) -> Tensor:
            return nn.functional.one_hot(torch.tensor([0, 1, 0, 0, 1, 2]), 3).float()

    stream = Stream.of(torch.zeros(6, 1), torch.tensor([0, 1, 0, 1, 1, 0]), 3)
    assert stream.presentations().tolist() == [0, 0, 1, 1, 2, 2]
    method = Says()
    assert method.curve(stream, 9)[0].tolist() == [1.0, 0.5]  # one of three classes need not come more than twice
    _, logs = method.meta_loss(stream)
    assert {name: float(value) for name, value in logs.items()} == pytest.approx(
        {"accuracy": 4 / 6, "accuracy_seen_0": 1.0, "accuracy_seen_1": 0.5, "accuracy_seen_4": 0.0}
    )


def test_the_frozen_reading_remembers_no_query() -> None:
    method = make().double()
    support = Examples(torch.rand(6, D, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2]), WAYS)
    queries = torch.rand(5, D, dtype=torch.float64)
    state = method.adapt(support)
    together = method.predict(state, queries)
    for i in range(5):
        torch.testing.assert_close(method.predict(state, queries[i : i + 1])[0], together[i])
    order = [0, 2, 4, 1, 3, 5]  # in rounds
    stream = Examples(torch.cat([support.x[order], queries[:1]]), torch.cat([support.y[order], torch.tensor([0])]), WAYS)
    torch.testing.assert_close(method.answers(stream)[-1], together[0])
    assert evaluate(method, Episode(*(Examples(e.x[None], e.y[None], 3) for e in (support, support))), 9).shape == (1, 1)


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"hidden": 0}, "hidden is 0; it must be >= 1"),
        ({"slots": 0, "width": -1}, "slots is 0; it must be >= 1; width is -1; it must be >= 1"),
        ({"heads": 10}, "heads is 10 and slots is 9; each head writes to its own slot: heads <= slots"),
    ],
)
def test_sizes_out_of_bounds_are_refused(sizes: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make(**sizes)


def test_other_settings_out_of_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"decay is 1\.0; it must be in \[0, 1\)"):
        MANN(nn.Identity(), Classification(), decay=1.0)
    with pytest.raises(ValueError, match="the stream has 2 ways, but the last layer has 3; give both the same"):
        make().double().answers(item(streams(ways=2), 0).query)
