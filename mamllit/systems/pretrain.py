"""Pre-training: plain classification of the meta-train classes, judged by few-shot episodes.

The features of a network that was trained to tell the meta-train classes apart solve tasks of new classes well (S. Ravi, H.
Larochelle, ICLR 2017, baselines of table 1; W.-Y. Chen et al., ICLR 2019), and they are a good start for meta-training:
`mamllit fit -c ... --init_from RUN`. Training sees flat batches (the data's `plain`); validation and test use episodes like
any other system's, classified by the nearest class mean (cosine), so the best checkpoint is the best few-shot one.

    mamllit fit -c experiments/pretrain/mini_imagenet_conv4_32.yaml --data.root DIR
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from mamllit.backbones.heads import CosineHead
from mamllit.data import EpisodicDataModule, PlainBatch
from mamllit.data.images import ImageDataModule
from mamllit.engine.evaluation import BATCH_NORMS
from mamllit.methods import PrototypicalNetworks
from mamllit.objectives import Classification
from mamllit.systems.episodic import EpisodicSystem
from mamllit.systems.reading import Normalisation


class PreTrainer(EpisodicSystem):
    """Trains a backbone and a head on the classes of meta-train.

    Args:
        backbone: gives features [n, D], without a head of its own; says its `in_channels` and `image_size`.
        classes: of meta-train (with `rotated_classes`, four times as many).
        head: "linear", or "cosine" (W.-Y. Chen et al. 2019): the cosine with a vector per class times a learned scale.
        label_smoothing: of the cross-entropy, in [0, 1).
        optimizer, lr_scheduler, log_every, batch_norm: see `EpisodicSystem`; the scheduler steps with every update.

    Raises:
        ValueError: for a number out of bounds; at `setup`, if `classes` is not the data's number, or for data without
            `plain`.

    >>> from mamllit import Conv4, PreTrainer
    >>> learner = PreTrainer(Conv4(in_channels=3, filters=8, out_features=None, image_size=32), classes=64, head="cosine")
    >>> learner.classes
    64
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        head: Literal["linear", "cosine"] = "linear",
        label_smoothing: float = 0.0,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        log_every: int = 50,
        batch_norm: Sequence[Normalisation] = BATCH_NORMS,
    ) -> None:
        reading = PrototypicalNetworks(backbone, Classification(), distance="cosine")
        super().__init__(
            reading,
            optimizer,
            lr_scheduler,
            eval_steps=0,
            report_step=0,
            log_every=log_every,
            batch_norm=batch_norm,
        )
        if classes < 2:
            raise ValueError(f"classes is {classes}; there must be at least 2 to tell apart")
        if head not in ("linear", "cosine"):
            raise ValueError(f"head is {head!r}; it must be 'linear' or 'cosine'")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}; it must be in [0, 1)")
        self.classes, self.label_smoothing = classes, label_smoothing
        features = count_features(backbone)
        self.head: nn.Module = (nn.Linear if head == "linear" else CosineHead)(features, classes)

    @property
    def backbone(self) -> nn.Module:
        """The network that is trained."""
        return self.method.backbone  # type: ignore[return-value]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self._check_classes(self.data)

    def _check_classes(self, data: Any) -> None:
        if not isinstance(data, ImageDataModule) or data.plain is None:
            raise ValueError(
                f"PreTrainer trains on plain batches, and {type(data).__name__} gives none; use an image data set and set its "
                "`plain`, for example {batch_size: 128, crop: 8, flip: true}"
            )
        if data.plain_classes != self.classes:
            raise ValueError(f"classes is {self.classes}, but the meta-train split has {data.plain_classes}: use that")

    def check_ways(self, data: EpisodicDataModule) -> None:
        """The head tells the classes of meta-train apart, and is not used in an episode."""

    def training_step(self, batch: PlainBatch, batch_idx: int) -> Tensor:
        x, y = batch.examples.x, batch.examples.y
        logits = self.head(self.backbone(x))
        loss = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        if (self.global_step + 1) % self.log_every == 0:
            if not loss.isfinite():
                raise FloatingPointError(
                    f"the loss is {loss.item():g} at step {self.global_step + 1}; use a smaller learning rate, or clip the "
                    "gradient (--trainer.gradient_clip_val)"
                )
            accuracy = (logits.detach().argmax(-1) == y).float().mean()
            self.log_dict({"train/loss": loss, "train/accuracy": accuracy}, prog_bar=True, batch_size=len(y), sync_dist=True)
        return loss


def count_features(backbone: nn.Module) -> int:
    """D of the features [n, D] that come out of `backbone`.

    Raises:
        ValueError: for a backbone with a head, or one that does not say what it takes.
    """
    if getattr(backbone, "out_features", None) is not None:
        raise ValueError(f"the backbone has a head of {backbone.out_features} outputs; set out_features: null to get features")
    side, channels = getattr(backbone, "image_size", None), getattr(backbone, "in_channels", None)
    if side is None or channels is None:
        raise ValueError(f"{type(backbone).__name__} lacks in_channels and image_size; give it these attributes")
    training = backbone.training
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(2, channels, side, side))
    backbone.train(training)
    return int(features.shape[-1])
