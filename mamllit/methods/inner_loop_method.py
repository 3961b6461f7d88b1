"""What a method with an inner loop is: a start, a step that is repeated, and a loss that judges the adapted state."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from mamllit.core.episode import Episode, Examples
from mamllit.core.inner_loop import Params
from mamllit.methods.base import Method


class InnerLoopMethod(Method):
    """A method that adapts by repeating one step, in separate pieces so that the engine can run it step by step.

    `start` gives the state before the first step, the same for all tasks; `step` makes one inner step; `outer_loss` judges the
    state after the last, or after each, as `outer_weights` says. The state is a dict of the tensors that differ between tasks;
    all else is read from the parameters.
    """

    inner_steps: int

    @abstractmethod
    def start(self, ways: int) -> Params:
        """The state before any step, for tasks of N `ways`."""

    @abstractmethod
    def step(self, state: Params, support: Examples) -> Params:
        """The state after one more inner step on `support`; the same names as in `state`."""

    @abstractmethod
    def outer_loss(self, state: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """The outer objective of one episode at the adapted `state`, a scalar, and scalars to log."""

    def outer_weights(self) -> Sequence[float]:
        """How much `outer_loss` after each of the `inner_steps` counts in the meta-loss; by default the last alone."""
        return (*(0.0,) * (self.inner_steps - 1), 1.0)[: self.inner_steps]

    def trajectory(self, support: Examples, steps: int) -> list[Params]:
        if steps < 0:
            raise ValueError(f"steps is {steps}; it must be >= 0")
        states = [self.start(support.ways)]
        for _ in range(steps):
            states.append(self.step(states[-1], support))
        return states

    def adapt(self, support: Examples, steps: int | None = None) -> Params:
        return self.trajectory(support, self.inner_steps if steps is None else steps)[-1]

    def meta_loss(self, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        *between, last = self.trajectory(episode.support, self.inner_steps)
        *weights, weight = self.outer_weights() or (1.0,)
        loss, logs = self.outer_loss(last, episode)
        for w, state in zip(weights, between[1:], strict=True):
            if w:
                loss = loss + w / weight * self.outer_loss(state, episode)[0]
        return weight * loss, logs
