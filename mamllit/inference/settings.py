"""How classes are learned from somebody's own images: what a user may choose, checked when it is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mamllit.backbones.timm_net import PRETRAINED
from mamllit.data.preparation import Preparation
from mamllit.engine.evaluation import BATCH_NORMS, BatchNorm


@dataclass(frozen=True)
class Settings:
    """How classes are learned; the defaults are right for photographs.

    Args:
        features: "timm:" and the name of a network of timm (extra `timm`), which stays as it is; by default
            timm:tf_efficientnet_lite0, whose weights come with the extra. The features of a folder are kept in it, in
            `.mamllit-cache`.
        weights: a file with the network's weights, safetensors or of torch.save; "pretrained" for timm's own.
        checkpoint: in the place of features: a name that comes with mamllit, or the path of a file of `mamllit export`.
        head: logistic, nearest_mean, euclidean_mean, nearest_image, baseline++, anil or maml; of a checkpoint also its own
            method, by default. On features logistic by default.
        compare: estimate all heads on the support, not only the one that is used.
        folds: of the estimates; by default leave-one-out up to 50 images, else 10 (5 where the whole network adapts).
        unsure: predictions of a lower probability are marked.
        cache_dir: a folder for the features, where the folders of images cannot be written.
        steps: inner steps of a checkpoint's own method (default: the number whose value is its result), or of the heads anil
            and maml.
        batch_norm: of a checkpoint. "inductive" normalises a query image by the support, so that it is predicted by itself.
            "transductive", as in the paper and in most published numbers, normalises it by all query images together: more
            accurate if they are many and of all classes alike, and wrong if they are few or of one class.
        trusted: your own packages whose classes the checkpoint may make; their code is run.
        preparation: how to prepare the images, for a checkpoint of a DataModule of your own.
        progress: show a bar while images are embedded.

    Raises:
        ValueError: for what is out of its bounds.

    >>> from mamllit.inference import Settings
    >>> Settings(head="nearest_mean", unsure=0.7).features is None  # the default network
    True
    """

    features: str | None = None
    weights: str | Path = PRETRAINED
    checkpoint: str | Path | None = None
    head: str | None = None
    compare: bool = False
    folds: int | None = None
    unsure: float = 0.5
    cache_dir: str | Path | None = None
    steps: int | None = None
    batch_norm: BatchNorm = "inductive"
    trusted: Sequence[str] = ()
    preparation: Preparation | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.batch_norm not in BATCH_NORMS:
            raise ValueError(f"batch_norm is {self.batch_norm!r}; it must be 'inductive' or 'transductive'")
        if self.steps is not None and self.steps < 0:
            raise ValueError(f"steps is {self.steps}; it must be >= 0")
        check_share(self.unsure)
        if self.checkpoint is None and self.batch_norm != "inductive":
            raise ValueError(f"batch_norm is {self.batch_norm!r}, which needs a checkpoint: features see one image at a time")
        if self.checkpoint is not None and (self.features is not None or self.weights != PRETRAINED):
            raise ValueError("a checkpoint has its own network: give a checkpoint, or features (and their weights), not both")


def check_share(unsure: float) -> None:
    """`ValueError` for a threshold that is no probability."""
    if not 0 <= unsure <= 1:
        raise ValueError(f"unsure is {unsure}; it is a probability, from 0 to 1")
