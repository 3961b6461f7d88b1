"""A user's own images: folders in, predicted classes out, by pretrained features or by a checkpoint."""

from mamllit.data.preparation import Preparation
from mamllit.inference.adapt import fewshot
from mamllit.inference.classifier import Classifier, load_classifier
from mamllit.inference.folders import adapt_folder, predict_folder
from mamllit.inference.outcome import HeadEstimate, Outcome
from mamllit.inference.settings import Settings

__all__ = [
    "Classifier",
    "HeadEstimate",
    "Outcome",
    "Preparation",
    "Settings",
    "adapt_folder",
    "fewshot",
    "load_classifier",
    "predict_folder",
]
