"""Training of a memory module: streams side by side that share one memory, and an update of the weights at each presentation.

A step is one presentation: B streams, the batch, show an image each. The memory is part of the system's state, so every
checkpoint contains it and a resumed run continues bit for bit; it is emptied before the first image of each set of B streams.
What is random in a step (dropout, the noise of the ages) is a function of the seed and the step. Evaluation is that of all
systems, with a separate memory for each stream or episode.

    mamllit fit -c experiments/memory_module/omniglot_5way.yaml --data.root DIR
"""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from mamllit.core.noise import uniform
from mamllit.data import EpisodicDataModule, OmniglotStreamDataModule
from mamllit.data.streams import Presentation
from mamllit.methods import MemoryModule
from mamllit.methods.memory_module import RareMemory, remember
from mamllit.systems.episodic import EpisodicSystem


class MemoryStream(EpisodicSystem):
    """Trains a `MemoryModule` on streams that share a memory, on one process.

    Args:
        method: what is learned.
        streams: B, side by side; the data's `meta_batch_size`.
        ways: N of a stream; the memory tells B * N labels apart.
        slots: S of the memory.
        age_noise: the oldest slot is chosen by age + U(-age_noise, age_noise); >= 0.
        optimizer, lr_scheduler, eval_steps, report_step, log_every: see `EpisodicSystem`; the logged value is that of the
            current presentation; with `log_every` a multiple of the streams' length, always of their last one.

    Raises:
        ValueError: for a number out of bounds; at `setup`, for data whose streams do not match, or for several processes.

    >>> from mamllit import Classification, MemoryModule, MemoryStream
    >>> system = MemoryStream(MemoryModule(torch.nn.Flatten(), Classification(), features=4), streams=2, ways=3, slots=8)
    >>> system.memory.keys.shape, system.memory.recent.shape
    (torch.Size([8, 4]), torch.Size([6]))
    """

    def __init__(
        self,
        method: MemoryModule,
        streams: int = 16,
        ways: int = 5,
        slots: int = 8192,
        age_noise: float = 8.0,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-4, eps=1e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        eval_steps: int = 5,
        report_step: int = 1,
        log_every: int = 60,
    ) -> None:
        super().__init__(method, optimizer, lr_scheduler, eval_steps=eval_steps, report_step=report_step, log_every=log_every)
        if streams < 1 or ways < 2:
            raise ValueError(f"streams is {streams} and ways is {ways}; there must be at least 1 stream and 2 ways")
        if slots < streams:
            raise ValueError(f"slots is {slots} and streams is {streams}; each stream may write in a step: slots >= streams")
        if age_noise < 0:
            raise ValueError(f"age_noise is {age_noise}; it must be >= 0")
        self.streams, self.ways, self.slots, self.age_noise = streams, ways, slots, age_noise
        for name, value in self.emptied()._asdict().items():
            self.register_buffer(f"memory_{name}", value)

    def emptied(self) -> RareMemory:
        """The memory before the first image of a set of streams."""
        like = next(self.method.parameters()).new_zeros(())
        return self.memory_module.empty(self.slots, self.streams * self.ways, like)

    @property
    def memory_module(self) -> MemoryModule:
        """The method, typed."""
        return self.method  # type: ignore[return-value]

    @property
    def memory(self) -> RareMemory:
        """The memory now."""
        return RareMemory(*(getattr(self, f"memory_{name}") for name in RareMemory._fields))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit":
            return
        if self.trainer.world_size > 1:
            raise ValueError(
                f"MemoryStream trains in one process, and there are {self.trainer.world_size}: its streams share a memory that "
                "changes at each presentation, and several processes would have several memories; use "
                "--trainer.devices 1. Testing can use any number of processes"
            )
        self.check_streams(self.data)

    def check_streams(self, data: Any) -> None:
        """Raise `ValueError` for data without presentations, or whose number of streams or ways is not the memory's."""
        if not isinstance(data, OmniglotStreamDataModule) or not data.presentations:
            raise ValueError(
                f"MemoryStream trains on single presentations, and {type(data).__name__} does not give them; use "
                "OmniglotStreamDataModule with presentations: true"
            )
        for name, own, other in (("streams", self.streams, data.meta_batch_size), ("ways", self.ways, data.ways)):
            if own != other:
                its = "meta_batch_size" if name == "streams" else name
                raise ValueError(f"{name} is {own}, but the data's {its} is {other}; give both the same number")

    def check_ways(self, data: EpisodicDataModule) -> None:
        """An evaluation takes any number of ways: its memories are made for it."""

    def training_step(self, batch: Presentation, batch_idx: int) -> Tensor:
        method = self.memory_module
        memory = self.emptied() if batch.place == 0 else self.memory
        labels = batch.y + self.ways * torch.arange(len(batch.y), device=batch.y.device)  # of all streams, each with its own
        key, seed = torch.tensor(self.global_step, device=self.device), int(getattr(self.data, "seed", 0))
        chance = uniform(key, 2 * seed, (len(batch.x), method.features), batch.x) if method.keep < 1 else None
        q = method.queries(batch.x, chance)
        loss = method.loss(memory, q, labels).mean()
        with torch.no_grad():
            noise = (2 * uniform(key, 2 * seed + 1, (self.slots,), q) - 1) * self.age_noise
            right = memory.values[(q @ memory.keys.mT).argmax(-1)] == labels
            for name, value in remember(memory, q.detach(), labels, noise)._asdict().items():
                setattr(self, f"memory_{name}", value)
        if (self.global_step + 1) % self.log_every == 0:
            if not loss.isfinite():
                raise FloatingPointError(
                    f"the loss is {loss.item():g} at step {self.global_step + 1}; use a smaller learning rate, or clip the "
                    "gradient (--trainer.gradient_clip_val)"
                )
            values = {"train/loss": loss, "train/accuracy": right.float().mean()}
            self.log_dict(values, prog_bar=True, batch_size=len(labels))
        return loss
