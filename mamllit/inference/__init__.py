"""A user's own images: folders in, predicted classes out, by pretrained features or by a checkpoint."""

from mamllit.data.preparation import Preparation
from mamllit.inference.adapt import Settings, adapt_folder, fewshot, predict_folder
from mamllit.inference.classifier import Classifier, load_classifier
from mamllit.inference.outcome import HeadEstimate, Outcome

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
