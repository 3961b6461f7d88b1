"""Meta-training that begins with the weights of a trained checkpoint: with more iterations, or on one's own images."""

from typing import Any

import lightning as L

from mamllit import pretrained
from mamllit.pretrained.build import fill
from mamllit.systems.meta_learner import MetaLearner


class StartFrom(L.Callback):
    """Fills the method before the first step; a run that is resumed keeps its own weights, and remembers where it began.

    Args:
        checkpoint: a name of `mamllit.pretrained.names()` or the path of a file that `mamllit export` wrote; None: untrained.

    `origin` then says what the run began with: name, iterations that it had behind it, seed, and its own origin, if any.

    Raises:
        FileNotFoundError: for an unknown name or missing file.
        ValueError: at the start of the fit, where the checkpoint does not fit the method.
    """

    def __init__(self, checkpoint: str | None = None) -> None:
        self.file = None if checkpoint is None else pretrained.find(checkpoint)
        self.origin: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"origin": self.origin}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.origin = state_dict["origin"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.file is None or trainer.global_step:
            return
        assert isinstance(pl_module, MetaLearner)
        checkpoint, tensors = pretrained.read(self.file)
        fill(pl_module.method, checkpoint, tensors)
        earlier = (checkpoint.result.get("fit") or {}).get("started_from")
        self.origin = {
            "name": checkpoint.name,
            "steps_done": checkpoint.result["steps_done"],
            "seed": checkpoint.result["seed"],
            **({"started_from": earlier} if earlier else {}),
        }
