"""A trained checkpoint on a user's own images: folders in, predicted classes out."""

from mamllit.data.preparation import Preparation
from mamllit.inference.adapt import Predictions, adapt_folder

__all__ = ["Predictions", "Preparation", "adapt_folder"]
