"""mamllit: Model-Agnostic Meta-Learning and the systems it is compared with, as a PyTorch Lightning application."""

__version__ = "0.1.0"
