"""Empty hooks are skipped, and only those."""

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from mamllit.backbones import MLP
from mamllit.data import SineDataModule
from mamllit.methods import MAML
from mamllit.objectives import Regression
from mamllit.systems import MetaLearner
from mamllit.systems.hooks import PER_STEP


class Counter(Callback):
    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_end(self, *args: object) -> None:
        self.steps += 1


class Learner(MetaLearner):
    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.seen: list[float] = []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def test_overridden_hooks_still_run_and_the_others_are_gone() -> None:
    learner, counter = Learner(MAML(MLP(1, [4], 1), Regression(), 0.01, 1, "mean")), Counter()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[counter], limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(learner, SineDataModule(meta_batch_size=2))
    assert (counter.steps, learner.seen) == (3, [1e-3] * 3)
    assert {name for name in PER_STEP if getattr(counter, name) is not None} == {"on_train_batch_end"}
    assert {name for name in PER_STEP if getattr(learner, name) is not None} == {"on_before_optimizer_step"}
