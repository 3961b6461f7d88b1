"""The memory module against a version in NumPy, written from the description, and what must hold of any such memory."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mamllit.backbones import ConvPairs
from mamllit.core.episode import Episode, Examples
from mamllit.core.stream import Stream
from mamllit.engine.evaluation import evaluate
from mamllit.methods import MemoryModule
from mamllit.methods.memory_module import EMPTY, RareMemory, remember
from mamllit.objectives import Classification

D = 4


def make(**settings: Any) -> MemoryModule:
    torch.manual_seed(0)
    return MemoryModule(nn.Identity(), Classification(), **{"features": D, "neighbours": 6, **settings}).double()


def unit(*numbers: float) -> Tensor:
    return nn.functional.normalize(torch.tensor([numbers], dtype=torch.float64), dim=-1)


class ByHand:
    """One memory in NumPy: a loop over the queries of a step for the loss, then over the slots that change."""

    def __init__(self, slots: int, margin: float, neighbours: int) -> None:
        self.keys, self.values, self.ages = np.zeros((slots, D)), np.full(slots, EMPTY), np.zeros(slots)
        self.recent: dict[int, int] = {}
        self.margin, self.neighbours = margin, neighbours

    def loss(self, queries: np.ndarray, labels: np.ndarray) -> list[float]:
        found = []
        for q, label in zip(queries, labels, strict=True):
            similarity = self.keys @ q
            pool = list(np.argsort(-similarity)[: self.neighbours])
            if label in self.recent:
                pool.append(self.recent[label])
            right = max([similarity[i] for i in pool if self.values[i] == label] + [0.0])
            wrong = max([similarity[i] for i in pool if self.values[i] != label] + [0.0])
            found.append(max(0.0, wrong - right + self.margin) - self.margin)
        return found

    def remember(self, queries: np.ndarray, labels: np.ndarray, noise: np.ndarray) -> None:
        self.ages += 1
        oldest = list(np.argsort(-(self.ages + noise), kind="stable"))
        changes = []
        for b, (q, label) in enumerate(zip(queries, labels, strict=True)):
            used = np.flatnonzero(self.values != EMPTY)
            nearest = used[np.argmax(self.keys[used] @ q)] if len(used) else None
            if nearest is not None and self.values[nearest] == label:
                moved = self.keys[nearest] + q
                changes.append((0, nearest, moved / np.linalg.norm(moved), label))
            else:
                changes.append((1, oldest[b], q, label))
        for _, slot, key, label in sorted(changes, key=lambda change: change[0]):  # what overwrites comes last
            self.keys[slot], self.values[slot], self.ages[slot] = key, label, 0
        for _, slot, _, label in changes:
            self.recent[int(label)] = slot


def test_a_version_in_numpy_remembers_the_same() -> None:
    """60 steps of 3 streams in a memory of 14 slots, which forgets."""
    random = np.random.default_rng(0)
    method, by_hand = make(), ByHand(14, margin=0.1, neighbours=6)
    memory = method.empty(14, 9, torch.zeros((), dtype=torch.float64))
    centres = random.normal(size=(9, D))
    evicted = 0
    for _ in range(60):
        labels = np.array([random.integers(3) + 3 * b for b in range(3)])
        queries = centres[labels] + 0.6 * random.normal(size=(3, D))
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        noise = random.uniform(-8, 8, 14)
        q, y = torch.from_numpy(queries), torch.from_numpy(labels)
        np.testing.assert_allclose(method.loss(memory, q, y).numpy(), by_hand.loss(queries, labels), atol=1e-12)
        before = memory.values
        memory = remember(memory, q, y, torch.from_numpy(noise))
        evicted += int(((before != memory.values) & (before != EMPTY)).sum())
        by_hand.remember(queries, labels, noise)
        np.testing.assert_allclose(memory.keys.numpy(), by_hand.keys, atol=1e-12)
        assert memory.values.tolist() == by_hand.values.tolist()
        assert memory.ages.tolist() == by_hand.ages.tolist()
        assert all(memory.recent[label] == slot for label, slot in by_hand.recent.items())
    assert evicted > 5
    used = memory.values != EMPTY
    torch.testing.assert_close(memory.keys[used].norm(dim=-1), torch.ones(int(used.sum()), dtype=torch.float64))


def test_by_hand_written_found_moved_and_evicted() -> None:
    method = make()
    memory = method.empty(2, 2, torch.zeros((), dtype=torch.float64))
    one, other = torch.tensor([1]), torch.tensor([0])
    memory = remember(memory, unit(1, 0, 0, 0), one)
    assert memory.values.tolist() == [1, EMPTY]
    assert method.scores(memory, unit(1, 0, 0, 0), 2).argmax() == 1
    memory = remember(memory, unit(0, 1, 0, 0), one)  # right: the key moves halfway, and no slot is written
    torch.testing.assert_close(memory.keys[0], unit(1, 1, 0, 0)[0])
    assert memory.values.tolist() == [1, EMPTY]
    memory = remember(memory, unit(1, 0, 0, 0), other)  # wrong: into the slot that is older, the empty one
    assert (memory.values.tolist(), memory.ages.tolist()) == ([1, 0], [1, 0])
    memory = remember(memory, unit(1, 0, 0, 1), one)  # nearest to the slot of 0, wrong: the oldest slot goes, in use as it is
    torch.testing.assert_close(memory.keys, torch.cat([unit(1, 0, 0, 1), unit(1, 0, 0, 0)]))
    assert (memory.values.tolist(), memory.ages.tolist(), memory.recent.tolist()) == ([1, 0], [0, 1], [1, 0])


def test_the_loss_by_hand() -> None:
    """q K+ = .6 and q K- = .8: .8 - .6 + .1 - .1; nothing known: 0; only the right one known, at 1: -.1."""
    method = make()
    q = unit(1, 0, 0, 0)
    keys = torch.cat([unit(0.6, 0.8, 0, 0), unit(0.8, 0.6, 0, 0)])
    memory = RareMemory(keys, torch.tensor([0, 1]), torch.zeros(2), torch.tensor([0, 1]))
    assert float(method.loss(memory, q, torch.tensor([0]))) == pytest.approx(0.2)
    empty = method.empty(2, 2, q.new_zeros(()))
    assert float(method.loss(empty, q, torch.tensor([0]))) == pytest.approx(0.0)
    right = memory._replace(keys=torch.cat([q, unit(0, 1, 0, 0)]))
    assert float(method.loss(right, q, torch.tensor([0]))) == pytest.approx(-0.1)
    wrong = memory._replace(keys=torch.cat([unit(0, 1, 0, 0), q]))
    assert float(method.loss(wrong, q, torch.tensor([0]))) == pytest.approx(1.0)


def test_a_positive_that_is_not_near_is_found_by_its_label() -> None:
    method = make(neighbours=1)
    memory = RareMemory(
        torch.cat([unit(1, 0, 0, 0), unit(1, 1, 0, 0)]), torch.tensor([0, 1]), torch.zeros(2), torch.tensor([0, 1])
    )
    loss = method.loss(memory, unit(1, 0, 0, 0), torch.tensor([1]))
    assert float(loss) == pytest.approx(1 - 2**-0.5)


def streams(tasks: int = 3, ways: int = 3, rounds: int = 4) -> Stream:
    torch.manual_seed(1)
    labels = torch.stack([torch.cat([torch.randperm(ways) for _ in range(rounds)]) for _ in range(tasks)])
    return Stream.of(torch.randn(tasks, ways * rounds, D, dtype=torch.float64), labels, ways)


def test_the_gradient_is_the_slope_and_goes_through_the_query_alone(assert_meta_gradient_is_the_slope: Any) -> None:
    memory = RareMemory(torch.cat([unit(0, 1, 0, 0), unit(1, 0, 0, 0)]), *(torch.tensor([0, 1]),) * 3)
    memory.keys.requires_grad_()
    q = unit(1, 1, 1, 0).requires_grad_()
    (gradient,) = torch.autograd.grad(make().loss(memory, q, torch.tensor([0])).sum(), q)
    torch.testing.assert_close(gradient, memory.keys[1:2].detach() - memory.keys[:1].detach())
    method = make()
    state = method.adapt(Examples(torch.randn(6, D, dtype=torch.float64), torch.arange(6) % 3, 3))
    assert not state.keys.requires_grad
    # a stream's keys move with the weights and are constants for the gradient; with a fixed memory it is the slope
    known = method.adapt(Examples(torch.randn(6, D, dtype=torch.float64), torch.arange(6) % 3, 3))

    class Fixed(MemoryModule):
        def adapt(self, support: Examples, steps: int | None = None) -> RareMemory:
            return known

    fixed = Fixed(nn.Linear(D, D), Classification(), features=D).double()
    nn.init.orthogonal_(fixed.query.weight)
    x = torch.randn(2, 6, D, dtype=torch.float64)
    y = (torch.arange(6) % 3).expand(2, -1)
    assert_meta_gradient_is_the_slope(fixed, Episode(Examples(x, y, 3), Examples(x + 0.3, y, 3)))


def test_no_shot_is_right_once_in_n_squared() -> None:
    """Before anything is known each label is as likely; afterwards what is new is taken for what is known."""
    values = evaluate(make(), streams(200, ways=5, rounds=3), 2)
    assert values[:, 0].mean() == pytest.approx(1 / 25)
    assert values[:, 0].std() == pytest.approx(0)


def test_a_query_is_not_remembered() -> None:
    method = make()
    support = Examples(torch.randn(6, D, dtype=torch.float64), torch.arange(6) % 3, 3)
    memory = method.adapt(support)
    before = [value.clone() for value in memory]
    together = method.predict(memory, support.x)
    assert all(torch.equal(one, other) for one, other in zip(memory, before, strict=True))
    torch.testing.assert_close(method.predict(memory, support.x[3:4])[0], together[3])


def test_dropout_keeps_what_chance_says() -> None:
    method = make(keep=0.5)
    nn.init.eye_(method.query.weight)
    chance = torch.tensor([[0.4, 0.6, 0.1, 0.9]], dtype=torch.float64)
    q = method.queries(torch.tensor([[3.0, 7.0, 4.0, 7.0]], dtype=torch.float64), chance)
    torch.testing.assert_close(q, unit(3, 0, 4, 0))


def test_the_papers_sizes() -> None:
    for features, size in ((128, 1_078_336), (256, 1_930_432)):
        method = MemoryModule(ConvPairs(1, 28, features=features), Classification(), features)
        assert sum(value.numel() for value in method.parameters()) == size
    assert ConvPairs(1, 15, filters=2, features=3)(torch.rand(2, 1, 15, 15)).shape == (2, 3)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"features": 0}, "features is 0 and neighbours is 6; both must be >= 1"),
        ({"margin": 0.0}, "margin is 0.0; it must be > 0"),
        ({"keep": 0.0}, "keep is 0.0; it must be in (0, 1]"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        make(**wrong)
