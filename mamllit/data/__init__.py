"""Episodic data: class pools, the sampler, and one LightningDataModule per data set."""

from mamllit.data.episodic import EpisodicDataModule, EvaluationSet
from mamllit.data.omniglot import OmniglotDataModule
from mamllit.data.sine import SineDataModule

__all__ = ["EpisodicDataModule", "EvaluationSet", "OmniglotDataModule", "SineDataModule"]
