"""The LightningModules."""

from mamllit.systems.meta_learner import MetaLearner
from mamllit.systems.pretrain import PreTrainer

__all__ = ["MetaLearner", "PreTrainer"]
