"""The LightningModules."""

from mamllit.systems.meta_learner import MetaLearner

__all__ = ["MetaLearner"]
