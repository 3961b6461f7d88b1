"""A trained checkpoint on a user's own images: folders in, predicted classes out."""

from mamllit.inference.adapt import Predictions, adapt_folder
from mamllit.inference.images import Preparation

__all__ = ["Predictions", "Preparation", "adapt_folder"]
