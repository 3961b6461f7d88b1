"""Handles a meta-loss or meta-gradient that is not finite: says where it comes from, and saves the state from before."""

import copy
import math
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from mamllit.core.episode import EpisodeBatch
from mamllit.core.tree import take
from mamllit.engine.meta_gradient import MetaGradient
from mamllit.runs.stopping import last_checkpoint

NonFinite = Literal["stop", "skip"]
NAMED = 10  # episodes and parameters that a message lists


class NonFiniteMetaLoss(FloatingPointError):
    """The meta-loss or its gradient is not finite; the text says at which step, for which episodes and parameters."""


def finite(gradients: list[Tensor]) -> bool:
    """Whether all numbers of all tensors are finite."""
    if gradients and gradients[0].device.type == "cpu" and math.isfinite(sum(float(value.sum()) for value in gradients)):
        return True  # a sum with nan or infinity is not finite either, and takes fewer calls than what follows
    # a finite sum can overflow; so look at the largest number of each: it is not finite where one is not
    return bool(torch.nn.utils.get_total_norm(gradients, norm_type=float("inf")).isfinite())


def not_finite(learner: Any, batch: EpisodeBatch, loss: Tensor) -> None:
    """Skip the current update and count it, or stop, as `learner.non_finite` says.

    Raises:
        NonFiniteMetaLoss: to stop; always if a weight itself is not finite, which no later step can repair.
    """
    trained = [value for value in learner.method.parameters() if value.requires_grad]
    if learner.non_finite == "skip" and all(value.isfinite().all() for value in trained):
        learner.skipped_steps += 1
        for value in trained:  # an optimiser skips parameters without a gradient
            value.grad = None
        return
    text = explain(learner.trainer, learner, batch, float(loss), learner.meta_gradient)
    before = checkpoint_before(learner)
    raise NonFiniteMetaLoss(
        f"{text}. The state before it is {before or 'the initial one'}. Use a smaller learning rate, clip the gradient "
        "(--trainer.gradient_clip_val), or skip such steps (--model.non_finite skip)"
    )


def explain(trainer: L.Trainer, learner: L.LightningModule, batch: EpisodeBatch, loss: float, gradient: MetaGradient) -> str:
    """The message: step, episodes, parameters. The episodes run again one by one, at the same weights; all ranks take part."""
    named = [(name, value) for name, value in learner.named_parameters() if value.requires_grad]
    spoilt_weights = [name for name, value in named if not value.isfinite().all()]
    episodes: list[int] = []
    spoilt: set[str] = set()
    alone = MetaGradient(gradient.method, "loop", False, gradient.memory)
    for i, number in enumerate(batch.number.tolist()):
        step = alone(take(batch.episodes, i, i + 1))
        bad = {name for name, value in step.gradient.items() if not value.isfinite().all()}
        if bad or not step.loss.isfinite():
            episodes.append(number)
            spoilt |= bad
    found: Any = (episodes, spoilt, loss)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        every: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(every, found)
        episodes = sorted(number for part in every for number in part[0])
        spoilt = set().union(*(part[1] for part in every))
        loss = next((part[2] for part in every if not torch.tensor(part[2]).isfinite()), loss)
    order = [name for name, _ in named if name in spoilt] or [
        n for n, v in named if v.grad is not None and not v.grad.isfinite().all()
    ]
    seed = getattr(getattr(trainer, "datamodule", None), "seed", None)
    return (
        f"meta-loss {loss:g} at step {trainer.global_step + 1}: not finite for the training episodes {_listed(episodes)} "
        f"(seed {seed}), in the gradient of {_listed(order)}; weights that were not finite before: {_listed(spoilt_weights)}"
    )


def checkpoint_before(learner: Any) -> Path | None:
    """Save the state before the current step, as `before_step<n>.ckpt`; None at the first step."""
    trainer: L.Trainer = learner.trainer
    if trainer.global_step == 0:
        return None
    path = last_checkpoint(trainer).parent / f"before_step{trainer.global_step + 1}.ckpt"
    learner.rolling_back = True  # so that its `on_save_checkpoint` calls `roll_back`
    try:
        trainer.save_checkpoint(path, weights_only=False)
    finally:
        learner.rolling_back = False
    return path


def roll_back(checkpoint: dict[str, Any]) -> None:
    """Set a checkpoint's loops to the end of the step before, which is when Lightning writes its own checkpoints."""
    loop = checkpoint["loops"]["fit_loop"] = copy.deepcopy(checkpoint["loops"]["fit_loop"])
    for counts in ("total", "current"):
        progress = loop["epoch_loop.batch_progress"][counts]
        done = progress["completed"]
        progress.update(ready=done, started=done, processed=done, completed=done - 1)
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def _listed(items: list[Any]) -> str:
    text = ", ".join(str(item) for item in items[:NAMED]) or "none"
    return text + (f" and {len(items) - NAMED} more" if len(items) > NAMED else "")
