"""Reinforcement-learning tasks: a DataModule that draws goals and the like; the training step collects the trajectories."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mamllit.core.philox import SPLITS
from mamllit.data.episodic import EpisodicDataModule, Evaluation, EvaluationSet, Protocol
from mamllit.data.sampler import uniform
from mamllit.rl.noise import Noise
from mamllit.rl.worlds import World

Budget = Literal["trajectories", "steps"]


class TaskBatch(NamedTuple):
    """T tasks to act in: `number` [T] in their stream, `task` [T, p]; `seed` and `split` of the stream, scalars."""

    number: Tensor
    task: Tensor
    seed: Tensor
    split: Tensor

    @property
    def noise(self) -> Noise:
        """The noise of their trajectories, the same on every process."""
        return Noise(int(self.seed), SPLITS[int(self.split)], tuple(self.number.tolist()))


class ControlDataModule(EpisodicDataModule):
    """Tasks of a world; task i is a pure function of (seed, split, i).

    The protocol "paper" has the tasks that the paper's numbers were measured on (see `World.paper_tasks`), "standard" others.
    An evaluation counts the returns of the same trajectories that the next update is made from, as the paper did.

    Args:
        world: the environment to act in.
        shots: K, trajectories of a task for each update in meta-training, and in a validation.
        queries: trajectories of a task after adapting, in meta-training.
        meta_batch_size: tasks per meta-update over all ranks.
        test_shots: the K to test with.
        budget: "trajectories", K of them, or "steps": as many as end within K times the horizon, as in the authors' code; a
            policy that reaches its goal early then acts more often.
        seed, eval_seed, protocols, val_episodes, eval_batch_size: see `EpisodicDataModule`.
        standard_episodes: tasks of the protocol "standard".

    Raises:
        ValueError: for a number below its bound or an unknown budget; for "steps" in a world whose trajectories cannot be
            restarted one by one; for a protocol "paper" of a world without published tasks.

    >>> from mamllit.data import ControlDataModule
    >>> from mamllit.rl import Navigation
    >>> data = ControlDataModule(Navigation(), test_shots=[20, 40])
    >>> [(e.name, e.episodes) for e in data.evaluation_sets("test")]
    [('paper/20-shot', 40), ('paper/40-shot', 40), ('standard/20-shot', 100), ('standard/40-shot', 100)]
    """

    ways = 1
    draw_ahead = 1

    def __init__(
        self,
        world: World,
        shots: int = 20,
        queries: int = 20,
        meta_batch_size: int = 20,
        test_shots: Sequence[int] = (20,),
        budget: Budget = "trajectories",
        seed: int | None = None,
        eval_seed: int = 0,
        protocols: Sequence[Protocol] = ("paper", "standard"),
        val_episodes: int = 40,
        standard_episodes: int = 100,
        eval_batch_size: int = 40,
    ) -> None:
        evaluation = Evaluation(
            eval_seed=eval_seed, protocols=protocols, val_episodes=val_episodes, eval_batch_size=eval_batch_size
        )
        super().__init__(shots, queries, meta_batch_size, evaluation, seed, num_workers=0)
        if not test_shots or min(test_shots) < 1:
            raise ValueError(f"test_shots is {list(test_shots)}; it needs at least one number of trajectories >= 1")
        if standard_episodes < 2:
            raise ValueError(f"standard_episodes is {standard_episodes}; it must be >= 2")
        if budget not in get_args(Budget):
            raise ValueError(f"budget is {budget!r}; it must be one of {list(get_args(Budget))}")
        if budget == "steps" and not world.restarts:
            raise ValueError(
                f"budget is 'steps', but {type(world).__name__} cannot restart its trajectories one by one; use budget: "
                "trajectories"
            )
        self.budget = budget
        self.world, self._test_shots = world, tuple(test_shots)
        self._tasks = {"paper": len(world.paper_tasks()) if "paper" in self.protocols else 0, "standard": standard_episodes}

    def test_shots(self) -> Sequence[int]:
        return self._test_shots

    def evaluation_sets(self, split: Literal["val", "test"]) -> list[EvaluationSet]:
        if split == "val":
            return [EvaluationSet("val", "standard", "val", self.shots, self.shots, self.val_episodes)]
        several = len(self._test_shots) > 1
        return [
            EvaluationSet(protocol + f"/{shots}-shot" * several, protocol, "test", shots, shots, self._tasks[protocol])
            for protocol in self.protocols
            for shots in self._test_shots
        ]

    def draw(self, seed: int, split: str, shots: int, queries: int, first: int, count: int) -> TaskBatch:
        numbers = torch.from_numpy(uniform(seed, split, first, count, len(self.world.task_names))).float()
        where = torch.tensor(seed), torch.tensor(SPLITS.index(split))
        return TaskBatch(torch.arange(first, first + count), self.world.tasks(numbers), *where)

    def draw_for(self, evaluation: EvaluationSet, first: int, count: int) -> TaskBatch:
        drawn: TaskBatch = super().draw_for(evaluation, first, count)
        if evaluation.protocol.partition("[")[0] == "paper":
            drawn = drawn._replace(task=self.world.paper_tasks()[first : first + count])
        return drawn

    def build(self, drawn: Any) -> TaskBatch:  # type: ignore[override]
        return drawn
