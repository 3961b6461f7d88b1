"""The LightningModules."""

from mamllit.systems.episodic import EpisodicSystem
from mamllit.systems.memory_stream import MemoryStream
from mamllit.systems.meta_learner import MetaLearner
from mamllit.systems.meta_policy import MetaPolicy
from mamllit.systems.pretrain import PreTrainer

__all__ = ["EpisodicSystem", "MemoryStream", "MetaLearner", "MetaPolicy", "PreTrainer"]
