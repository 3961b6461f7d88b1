"""An alarm for methods that learn variances: if these shrink to nothing, the method has silently become MAML."""

import warnings
from typing import Protocol, runtime_checkable

import lightning as L
from torch import Tensor

from mamllit.systems.episodic import EpisodicSystem


@runtime_checkable
class Spread(Protocol):
    """A method that can say how much is left of its learned standard deviations."""

    def spread(self) -> dict[str, Tensor]:
        """By name, the mean standard deviation as a share of what it began with."""


class CollapseAlarm(L.Callback):
    """After each validation of a fit, log `spread/<name>` and warn, once for each name, where it has fallen below `below`.

    Args:
        below: the share of the first value that counts as collapsed, > 0.
        fail: raise instead of warning.

    Raises:
        ValueError: for a bound that is not positive.
        TypeError: at the start of a fit, for a method without `spread`.
        RuntimeError: in the fit, with `fail`, when variances have collapsed.
    """

    def __init__(self, below: float = 1e-4, fail: bool = False) -> None:
        if below <= 0:
            raise ValueError(f"below is {below}; it must be > 0")
        self.below, self.fail = below, fail
        self._told: set[str] = set()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        method = getattr(pl_module, "method", None)
        if not isinstance(method, Spread):
            raise TypeError(f"CollapseAlarm watches methods with `spread()`, which {type(method).__name__} lacks; leave it out")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or not isinstance(pl_module, EpisodicSystem) or not isinstance(pl_module.method, Spread):
            return
        shares = {name: float(share) for name, share in pl_module.method.spread().items()}
        for logger in trainer.loggers:
            logger.log_metrics({f"spread/{name}": share for name, share in shares.items()}, trainer.global_step)
        for name, share in shares.items():
            if share >= self.below or name in self._told:
                continue
            self._told.add(name)
            text = (
                f"the standard deviations {name!r} have collapsed to {share:.2g} of their first value (bound {self.below:g}) "
                f"after {trainer.global_step} steps: the sampled models no longer differ; raise kl_weight"
            )
            if self.fail:
                raise RuntimeError(text)
            if trainer.is_global_zero:
                warnings.warn(text, stacklevel=1)
