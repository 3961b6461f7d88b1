"""Meta-reinforcement learning: a training step acts, adapts each task's policy, acts again, and makes the outer step on both.

Finn et al. 2017, section 5.3 and algorithm 3. The outer optimiser is an ordinary torch optimiser, by default the paper's,
`mamllit.rl.TrustRegion`; so steps, checkpoints, resuming and logging are Lightning's own.
"""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from matplotlib.figure import Figure
from torch import Tensor

from mamllit.data import ControlDataModule, EpisodicDataModule, EvaluationSet
from mamllit.data.control import TaskBatch
from mamllit.engine.acting import Credit, Practice, StepByStep, practise
from mamllit.engine.evaluation import ordinary
from mamllit.engine.policy_step import PolicyStep
from mamllit.figures.paths import navigation_paths
from mamllit.methods import Method
from mamllit.rl.objective import PolicyGradient
from mamllit.rl.proximal import ProximalAdam
from mamllit.rl.trust_region import TrustRegion
from mamllit.systems.episodic import EpisodicSystem
from mamllit.systems.guard import NonFiniteMetaLoss, finite
from mamllit.systems.handover import with_gradient

DRAWN, PATHS = 4, 3  # tasks, and trajectories of each, in the figure of paths


class MetaPolicy(EpisodicSystem):
    """Meta-trains a policy on the tasks of a `ControlDataModule`, and evaluates its returns after each gradient step.

    Args:
        method: what is learned: one whose inner steps can be made one at a time (`start`, `step`), with a `PolicyGradient`.
        optimizer: makes the outer optimiser: `TrustRegion` or `ProximalAdam`, which are given each step's problem, or any
            other.
        curvature: the share of the steps from which `TrustRegion` takes its products; 1 is the paper's.
        discount, gae_lambda: how rewards become advantages.
        later_steps: the share of the step size that the second and later gradient steps of an evaluation take (the paper: 1/2).
        eval_steps, report_step, log_every, lr_scheduler: see `EpisodicSystem`.

    Raises:
        ValueError: for a number out of bounds, a method without single steps, an objective that is no `PolicyGradient`; at
            `setup`, when the policy's sizes differ from the world's.
        TypeError: at `setup`, without a `ControlDataModule`.
        FloatingPointError: in a fit, where returns or the gradient are not finite.

    >>> from mamllit import MAML, MetaPolicy
    >>> from mamllit.rl import GaussianPolicy, PolicyGradient
    >>> method = MAML(GaussianPolicy(2, 2), PolicyGradient(), inner_lr=0.1, inner_steps=1, reduction="mean")
    >>> MetaPolicy(method).eval_steps
    3
    """

    holds_examples = False

    def __init__(
        self,
        method: Method,
        optimizer: OptimizerCallable = TrustRegion,
        lr_scheduler: LRSchedulerCallable | None = None,
        curvature: float = 1.0,
        discount: float = 0.99,
        gae_lambda: float = 1.0,
        later_steps: float = 0.5,
        eval_steps: int = 3,
        report_step: int = 1,
        log_every: int = 1,
    ) -> None:
        super().__init__(method, optimizer, lr_scheduler, eval_steps=eval_steps, report_step=report_step, log_every=log_every)
        between = {"curvature": curvature, "discount": discount, "gae_lambda": gae_lambda, "later_steps": later_steps}
        wrong = [f"{name} is {value}; it must be > 0 and <= 1" for name, value in between.items() if not 0 < value <= 1]
        if wrong:
            raise ValueError("; ".join(wrong))
        if not isinstance(method, StepByStep):
            raise ValueError(
                f"{type(method).__name__} has no `start` and `step`, so it cannot act between two inner steps; use MAML, "
                "ANIL, Meta-SGD, CAVIA or another method that has them"
            )
        if not isinstance(method.objective, PolicyGradient):
            raise ValueError(f"the objective is {type(method.objective).__name__}; a policy needs mamllit.rl.PolicyGradient")
        self.curvature, self.later_steps = curvature, later_steps
        self.credit = Credit(discount, gae_lambda)
        self._step: PolicyStep | None = None

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        """The surrogate loss of a meta-batch of tasks, with its gradient through the adaptation."""
        data = self.control()
        self.method.begin_iteration(self.global_step)
        steps = int(self.method.inner_steps)  # type: ignore[arg-type]
        counts, refill = [*[data.shots] * steps, data.queries], data.budget == "steps"
        practice = practise(self.learner(), data.world, batch.task, batch.noise, counts, self.credit, refill=refill)
        parameters = self.optimized()
        self._step = PolicyStep(self.learner(), practice, parameters, self.curvature, self.global_step, self._mean)
        loss, gradient = self._step.gradient()
        optimizer = self.optimizers(use_pl_optimizer=False)
        if isinstance(optimizer, TrustRegion | ProximalAdam):
            optimizer.pose(self._step)
        if (self.global_step + 1) % self.log_every == 0:
            self._log_practice(practice, len(batch.number))
        return with_gradient(loss, gradient, parameters)

    def _log_practice(self, practice: Practice, tasks: int) -> None:
        values = {f"train/return_step{steps}": value for steps, value in enumerate(practice.returns.mean(0))}
        values["train/finished"] = practice.last.finished.mean()
        values["train/entropy"] = self.learner().objective.distribution.entropy(practice.outputs).mean()
        self.log_dict(values, prog_bar=True, batch_size=tasks, sync_dist=True)

    def on_after_backward(self) -> None:
        gradients = [value.grad for value in self.optimized() if value.grad is not None]
        if not finite(gradients):
            raise NonFiniteMetaLoss(
                f"the meta-gradient of step {self.global_step + 1} is not finite, but the returns are; use a smaller inner_lr "
                "or max_kl, and an estimator other than dice, whose weights are products over whole trajectories"
            )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._step = None
        optimizer = self.optimizers(use_pl_optimizer=False)
        if isinstance(optimizer, TrustRegion) and self.global_step % self.log_every == 0:
            taken = optimizer.taken
            tries = float("nan") if taken.shortened is None else float(taken.shortened)
            self.log_dict({"train/kl": taken.kl, "train/surrogate_gain": taken.gain, "train/shortened": tries})

    # ---- around the step -----------------------------------------------------------------------------------------

    def optimized(self) -> list[Any]:
        return [value for value in self.method.parameters() if value.requires_grad]

    def learner(self) -> StepByStep:
        """The method, as one that makes single steps."""
        assert isinstance(self.method, StepByStep)
        return self.method

    def control(self) -> ControlDataModule:
        """The Trainer's data module.

        Raises:
            TypeError: if it is not a `ControlDataModule`.
        """
        data = self.data
        if not isinstance(data, ControlDataModule):
            raise TypeError(f"MetaPolicy acts in the world of a ControlDataModule, but the Trainer has {type(data).__name__}")
        return data

    def _mean(self, value: Tensor) -> Tensor:
        found = self.trainer.strategy.reduce(value, reduce_op="mean")
        assert isinstance(found, Tensor)
        return found

    def check_ways(self, data: EpisodicDataModule) -> None:
        """Raise `ValueError` where the policy has other sizes than the world."""
        policy, world = getattr(self.method, "backbone", None), getattr(data, "world", None)
        for name in ("observations", "actions"):
            has, needs = getattr(policy, name, None), getattr(world, name, None)
            if has is not None and needs is not None and has != needs:
                raise ValueError(
                    f"the policy has {name}: {has}, but {type(world).__name__} has {needs}; give the policy the world's number"
                )

    def setup(self, stage: str) -> None:
        data = self.control()
        if data.budget == "steps" and self.learner().objective.inner == "dice":
            raise ValueError(
                "budget is 'steps', which puts several trajectories into a row, and DiCE's weights are sums over a whole row; "
                "use budget: trajectories"
            )
        super().setup(stage)

    def _find_company(self, data: EpisodicDataModule) -> None:
        """Nothing to find out: a policy's actions do not depend on other observations."""

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def practise_on(self, batch: TaskBatch, trajectories: int, steps: int) -> Practice:
        """Act and adapt, as an evaluation does; the meta-parameters stay as they are."""
        shares = (1.0, self.later_steps)
        counts, data = [trajectories] * (steps + 1), self.control()
        refill = data.budget == "steps"
        with torch.inference_mode(False), torch.no_grad():
            batch = ordinary(batch)  # type: ignore[assignment, arg-type]
            return practise(self.learner(), data.world, batch.task, batch.noise, counts, self.credit, shares, False, refill)

    def _evaluate(self, batch: Any, dataloader_idx: int) -> None:
        evaluation = self.evaluation_sets[dataloader_idx]
        returns = self.practise_on(batch, evaluation.shots, self.eval_steps).returns
        for reading in self.readings:
            if reading.evaluation == evaluation:
                self._metrics[reading.name].update(batch.number, returns)

    def own_figures(self, evaluation: EvaluationSet, title: str) -> dict[str, Figure]:
        """The paths of a few test tasks' trajectories before and after adapting (the MAML paper's figure 4)."""
        data = self.control()
        tasks = data.draw_for(evaluation, 0, min(DRAWN, evaluation.episodes))
        batch = TaskBatch(*(value.to(self.device) for value in tasks))
        paths: dict[int, Tensor] = {}
        valid: dict[int, Tensor] = {}
        for steps in sorted({0, self.report_step, self.eval_steps}):
            last = self.practise_on(batch, evaluation.shots, steps).last
            places = data.world.places(last.observations[:, :PATHS])
            if places is None:
                return {}
            paths[steps], valid[steps] = places.cpu(), last.first[:, :PATHS].cpu()
        return {f"paths_{evaluation.shots}shot": navigation_paths(tasks.task, paths, valid, title)}
