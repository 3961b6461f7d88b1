"""Episodic data: class pools, the sampler, and one LightningDataModule per data set."""

from mamllit.data.control import ControlDataModule
from mamllit.data.episodic import EpisodicDataModule, Evaluation, EvaluationSet
from mamllit.data.image_folder import ImageFolderDataModule
from mamllit.data.images import ImageDataModule
from mamllit.data.mini_imagenet import MiniImagenetDataModule
from mamllit.data.omniglot import OmniglotDataModule
from mamllit.data.pairs import OmniglotPairsDataModule
from mamllit.data.plain import PlainBatch, PlainBatches
from mamllit.data.pool import ClassPool
from mamllit.data.preparation import Preparation
from mamllit.data.regression.frequency_sine import FrequencySineDataModule
from mamllit.data.regression.sine import SineDataModule
from mamllit.data.regression.sine_line import SineLineDataModule
from mamllit.data.streams import OmniglotStreamDataModule

__all__ = [
    "ClassPool",
    "ControlDataModule",
    "EpisodicDataModule",
    "Evaluation",
    "EvaluationSet",
    "FrequencySineDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "MiniImagenetDataModule",
    "OmniglotDataModule",
    "OmniglotPairsDataModule",
    "OmniglotStreamDataModule",
    "PlainBatch",
    "PlainBatches",
    "Preparation",
    "SineDataModule",
    "SineLineDataModule",
]
